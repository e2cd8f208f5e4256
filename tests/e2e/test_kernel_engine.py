"""The daemon on a kernel with Linux-CR's calls, for which a stand-in answers."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from crd.engine.kernel.table import named
from tests.support.daemon import RunningDaemon, eventually
from tests.support.standin_kernel import StandInKernel
from tests.support.victims import sleep, until

pytestmark = [pytest.mark.root, pytest.mark.beside, pytest.mark.skipif(
    not Path("/sys/fs/cgroup/freezer/tasks").exists(), reason="the freezer cgroup is not at /sys/fs/cgroup/freezer")]
RELEASE = "387/388/3"


def test_checkpoint_archive_and_restart(tmp_path: Path) -> None:
    kernel = StandInKernel(named(RELEASE, "x86_64"))

    def daemon() -> dict[str, Any]:
        running = RunningDaemon(tmp_path, f'[engine]\nlinux_cr = "{RELEASE}"\n').start()
        try:
            image = running.crctl("checkpoint", "--pid", str(program.pid))
            exported = running.run_crctl("export", str(image["crid"]), "-o", str(tmp_path / "out"))
            assert exported.returncode == 0, exported.stderr
            os.kill(program.pid, signal.SIGKILL)
            pid = running.crctl("restart", str(image["crid"]), "--wait")["root_pid"]
            until("name", lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
            os.kill(pid, signal.SIGKILL)  # what the stand-in restores looks like a worker yet
            return {"status": running.crctl("status"), "image": image}
        finally:
            running.stop()

    with sleep(tmp_path, 60) as program:
        found = kernel.run(daemon)
        image = found["image"]
        assert found["status"]["engine"] == "kernel"
        assert (image["engine"], image["comm"], image["pid"]) == ("kernel", "sleep", program.pid)
        assert image["header"]["release"] == "2.6.29-rc8-cr"
        assert image["image_bytes"] == (tmp_path / "out").stat().st_size
        assert (tmp_path / "out").read_bytes() == kernel.image(program.pid).replace(b"restored", b"sleep\0\0\0")
    assert [call.number for call in kernel.seen] == [387, 388]


def test_a_daemon_that_is_to_use_what_the_kernel_has_not_does_not_start(tmp_path: Path) -> None:
    running = RunningDaemon(tmp_path, '[engine]\nkind = "kernel"\n')
    with pytest.raises(AssertionError):
        running.start()
    eventually("the reason", lambda: "none was tried" in running.log)
    assert running.process
    assert running.process.wait() == 13
