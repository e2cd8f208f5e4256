"""The time of day jumps, as far as a real daemon sees it (libfaketime); images come all the same."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.support.daemon import RunningDaemon, eventually
from tests.support.workload import CountingProgram

pytestmark = pytest.mark.root

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
SKIPPED = 'crd_checkpoints_total{engine="userspace",result="skipped",target="counter"}'


def test_a_clock_that_is_set_back_and_forth(tmp_path: Path) -> None:
    assert LIBRARY, "apt-get install faketime"
    offset = tmp_path / "offset"
    config = f'[targets.counter]\npidfile = "{tmp_path}/program.pid"\nevery = "1s"\nkeep = "last=3"\n'
    daemon = RunningDaemon(tmp_path, config)
    daemon.environment |= {"LD_PRELOAD": str(LIBRARY), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1",
                           "FAKETIME_DONT_FAKE_MONOTONIC": "1"}

    def jump(by: str) -> None:
        """Set the clock; it is read anew each time."""
        (tmp_path / "new").write_text(by)
        (tmp_path / "new").rename(offset)

    def newest() -> int:
        return max((image["crid"] for image in daemon.crctl("images")), default=0)

    jump("+0")
    with CountingProgram(tmp_path, ballast_mib=1) as program, daemon:
        eventually("images", lambda: newest() >= 2)
        for by, days in (("-3d", -3), ("+400d", 400), ("+0", 0)):
            jump(by)
            before = newest()
            eventually(f"images at {by}", lambda before=before: newest() >= before + 2)
            problems = {problem["code"] for problem in daemon.crctl("status")["problems"]}
            assert ("daemon.clock-set-back" in problems) == (days <= 0), problems
            program.assert_unharmed()
        assert daemon.metrics()[SKIPPED] < 10_000, "of the 34 million that the jump went past"
        request = daemon.crctl("restart", "counter@latest", "--new-pids", "--wait")
        assert request["state"] == "done"
        os.kill(request["root_pid"], signal.SIGKILL)
        assert daemon.run_crctl("target", "hold", "counter").returncode == 0
        program.assert_unharmed()
