"""checkpoint(2) and restart(2) as programs see them that make them by number, with syscall(2) and nothing else."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from crd.engine.api import RestartOptions, RestartResult, restart
from tests.support.served import Served, compiled, received
from tests.support.victims import until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

SAVES_ITSELF = """
#include <fcntl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
    int image = open("image", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    long steps = 0;

    setvbuf(stdout, NULL, _IOLBF, 0);
    steps = 41;
    long crid = syscall(387, 0, image, 0L);
    printf("%ld %ld\\n", crid, ++steps);
    for (;;)
        pause();
}
"""


def test_three_ways_to_return(tmp_path: Path) -> None:
    """A crid for who was saved, 0 for who was restarted: the classic of sys_checkpoint."""
    with Served([compiled(tmp_path, SAVES_ITSELF)], tmp_path) as program:
        saved = program.serve()
        assert saved.pid == program.pid
        assert saved.result == 1
        until("the return of the call", lambda: program.output() == "1 42\n")
        program.assert_unharmed()
        program.kill()
        with (tmp_path / "image").open("rb") as image:
            result = restart(image.fileno(), options=RestartOptions())
        program.restarted_as(result.root_pid)
        assert "ENOSYS" in "".join(result.notes)
        until("the second return, where the first was printed", lambda: program.output() == "0 42\n")
        assert program.status()["Seccomp"] == "0"


CALLS_AGAIN = SAVES_ITSELF.replace("for (;;)", 'printf("%ld\\n", syscall(387, 0, image, 0L));\n    for (;;)')


def test_a_restarted_program_is_under_the_filter_again(tmp_path: Path) -> None:
    listeners: list[int] = []

    def confirm(ready: RestartResult) -> None:
        listeners.extend(map(os.dup, ready.listeners))

    with Served([compiled(tmp_path, CALLS_AGAIN)], tmp_path) as program:
        program.serve()
        program.call()
        program.kill()
        with (tmp_path / "image").open("rb") as image:
            result = restart(image.fileno(), options=RestartOptions(served=True), confirm=confirm)
        program.restarted_as(result.root_pid)
        assert not result.notes
        program.hang_up()
        [program.listener] = listeners
        assert received(program.listener).tid == program.pid
        assert program.status()["Seccomp_filters"] == "1"
        until("the first line", lambda: program.output() == "0 42\n")
