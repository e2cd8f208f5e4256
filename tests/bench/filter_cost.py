"""What the filter of ``crctl run`` costs every other system call: getppid(2), over and over, with and without it."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_CALLS = 2_000_000
_LOOP = """
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct timespec began, ended;
    long calls = argc > 1 ? atol(argv[1]) : 1;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &began);
    for (long i = 0; i < calls; i++)
        syscall(SYS_getppid);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ended);
    printf("%f", ((ended.tv_sec - began.tv_sec) * 1e9 + (ended.tv_nsec - began.tv_nsec)) / calls);
}
"""
_UNDER_THE_FILTER = "import os, sys; from crd import syscalls; syscalls.install(); os.execv(sys.argv[1], sys.argv[1:])"


def filter_cost(home: Path, n: int, row: Callable[..., None]) -> None:
    """Measure both in turn."""
    program = home / "getppid"
    subprocess.run(["gcc", "-O2", "-x", "c", "-o", program, "-"], input=_LOOP.encode(), check=True)
    loop = [str(program), str(_CALLS)]
    ways = {"with": [sys.executable, "-c", _UNDER_THE_FILTER, *loop], "without": loop}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(n):
        for way, command in ways.items():
            seconds[way].append(float(subprocess.run(command, capture_output=True, check=True).stdout))
    under, plain = (statistics.median(seconds[way]) for way in ways)
    row("a system call (getppid) of a program under `crctl run`", n, f"{under:.0f} ns", f"{plain:.0f} ns without",
        f"{under / plain:.2f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="crd-bench-") as directory:
        filter_cost(Path(directory), 15, print)
