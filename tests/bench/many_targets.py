"""A real daemon that looks after a thousand real processes: what it costs at rest, and how late it is at work.

``python -m tests.bench.many_targets`` runs it alone, as root.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.daemon import RunningDaemon, children

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TARGETS = 1_000
PER_SECOND = 20
WORKERS = 4
"""Each checkpoint waits for a disk several times."""
_IDLE_SECONDS = 60.0
_ROUNDS = 3
_LAG_ALLOWED = 0.2
_PSS_ALLOWED_MIB = 150
_CPU_ALLOWED = 0.01
_TICKS = os.sysconf("SC_CLK_TCK")
_LAG = re.compile(r'crd_schedule_lag_seconds_bucket\{le="([^"]+)"\}')


@contextmanager
def resting(n: int) -> Iterator[list[int]]:
    """Have so many small processes, which do nothing."""
    with ExitStack() as stack:
        running = []
        for _ in range(n):
            process = subprocess.Popen(["sleep", "infinity"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                       stderr=subprocess.DEVNULL, start_new_session=True)
            stack.callback(process.wait)
            stack.callback(process.kill)
            running.append(process.pid)
        yield running


def config(pids: list[int], schedule: str) -> str:
    """Return settings by which each of the processes is a target."""
    return f'[engine]\nworkers = {WORKERS}\n[retention]\nkeep = "last=2"\n' + "".join(
        f"[targets.t{number}]\npid = {pid}\n{schedule}\n" for number, pid in enumerate(pids))


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process and of its children, those that have ended and those that have not."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    of_children = 0.0
    for child in children(pid):
        with suppress(OSError):
            of_children += cpu_seconds(child)
    return sum(map(int, stat[11:15])) / _TICKS + of_children


def pss_mib(pid: int) -> float:
    """Return the memory of a process, with its share of what it has in common with others."""
    return int(re.findall(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[0]) / 1024


def share_of_a_core(pid: int, seconds: float) -> float:
    """Return how much of a core a process uses, over a time."""
    began, before = time.monotonic(), cpu_seconds(pid)
    time.sleep(seconds)
    return (cpu_seconds(pid) - before) / (time.monotonic() - began)


def lags(metrics: dict[str, float]) -> dict[float, float]:
    """Return the buckets of the lag, by their upper bound."""
    return {float(found[1]): value for name, value in metrics.items() if (found := _LAG.fullmatch(name))}


def quantile(before: dict[float, float], after: dict[float, float], share: float) -> float:
    """Return what is greater than so large a share of what came meanwhile, as Prometheus' histogram_quantile does."""
    came = {bound: after[bound] - before[bound] for bound in sorted(after)}
    wanted, lower, below = share * came[float("inf")], 0.0, 0.0
    for bound, n in came.items():
        if n >= wanted:
            return bound if bound == float("inf") else lower + (bound - lower) * (wanted - below) / max(1, n - below)
        lower, below = bound, n
    raise AssertionError(came)


def taken(metrics: dict[str, float]) -> tuple[float, float]:
    """Return how many checkpoints have succeeded, and how many have not."""
    ended = {name: value for name, value in metrics.items() if name.startswith("crd_checkpoints_total{")}
    ok = sum(value for name, value in ended.items() if 'result="ok"' in name)
    return ok, sum(ended.values()) - ok


def many_targets(row: Callable[[str, int, str, str, str], None], *, targets: int = TARGETS,
                 rounds: int = _ROUNDS) -> None:
    """Measure a daemon at rest, and at work."""
    every = targets / PER_SECOND
    with tempfile.TemporaryDirectory(prefix="crd-bench-") as name, resting(targets) as pids, RunningDaemon(
            Path(name), config(pids, 'every = "1d"')) as daemon:
        assert daemon.process
        pid = daemon.process.pid
        time.sleep(5)
        idle = [share_of_a_core(pid, _IDLE_SECONDS) for _ in range(rounds)]
        row(f"{targets} targets, none due: processor time", rounds, f"{statistics.median(idle):.2%} of a core",
            f"{_CPU_ALLOWED:.0%} is allowed", f"{statistics.median(idle) / _CPU_ALLOWED:.2f}")
        daemon.config.write_text(config(pids, f'every = "{every:g}s"\njitter = "{every:g}s"'))
        daemon.crctl("reload")
        time.sleep(2 * every)
        late, costs, sizes, rates, failed = [], [], [], [], 0.0
        for _ in range(rounds):
            before, cpu, began = daemon.metrics(), cpu_seconds(pid), time.monotonic()
            time.sleep(every)
            after, used, seconds = daemon.metrics(), cpu_seconds(pid) - cpu, time.monotonic() - began
            (ok_before, failed_before), (ok, failed_after) = taken(before), taken(after)
            late.append(quantile(lags(before), lags(after), 0.99))
            costs.append(used / (ok - ok_before))
            rates.append((ok - ok_before) / seconds)
            sizes.append(pss_mib(pid))
            failed += failed_after - failed_before
        what = f"{targets} targets, {statistics.median(rates):.1f} checkpoints a second"
        row(f"{what}: schedule lag, p99", rounds, f"{statistics.median(late) * 1e3:.0f} ms",
            f"{_LAG_ALLOWED * 1e3:.0f} ms are allowed", f"{statistics.median(late) / _LAG_ALLOWED:.2f}")
        row(f"{what}: processor time of each, workers and all", rounds, f"{statistics.median(costs) * 1e3:.1f} ms",
            f"{failed:g} failed or were skipped", "")
        row(f"{what}: memory of the daemon's process (Pss)", rounds, f"{max(sizes):.0f} MiB",
            f"{_PSS_ALLOWED_MIB} MiB are allowed", f"{max(sizes) / _PSS_ALLOWED_MIB:.2f}")


if __name__ == "__main__":
    many_targets(lambda *cells: print(" | ".join(map(str, cells)), flush=True))
