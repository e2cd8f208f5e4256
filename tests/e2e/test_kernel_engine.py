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
    ours = kernel.version
    kernel.at_checkpoint = lambda _: setattr(kernel, "version", "2.6.28" if kernel.crid else ours)

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
            check_another_version(running)
            return {"status": running.crctl("status"), "image": image}
        finally:
            running.stop()

    def check_another_version(running: RunningDaemon) -> None:
        (tmp_path / "other").mkdir()
        with sleep(tmp_path / "other", 60) as other:
            theirs = str(running.crctl("checkpoint", "--pid", str(other.pid))["crid"])
        for options in (["--plan"], ["--wait"]):
            refused = running.run_crctl("restart", theirs, *options)
            assert refused.returncode == 13
            assert "written by kernel 2.6.28" in refused.stdout + refused.stderr
        assert running.run_crctl("restart", theirs, "--plan", "--force-version").returncode == 0
        request = running.crctl("restart", theirs, "--wait", "--force-version")
        assert (request["state"], request["force_version"]) == ("done", True)
        os.kill(request["root_pid"], signal.SIGKILL)

    with sleep(tmp_path, 60) as program:
        found = kernel.run(daemon)
        image, kernel.version = found["image"], ours
        assert found["status"]["engine"] == "kernel"
        assert (image["engine"], image["comm"], image["pid"]) == ("kernel", "sleep", program.pid)
        assert image["header"]["release"] == "2.6.29-rc8-cr"
        assert image["image_bytes"] == (tmp_path / "out").stat().st_size
        assert (tmp_path / "out").read_bytes() == kernel.image(program.pid).replace(b"restored", b"sleep\0\0\0")
    assert [call.number for call in kernel.seen] == [387, 388, 387, 388]


def test_a_call_that_is_stuck_in_the_kernel_blocks_nobody(tmp_path: Path) -> None:
    kernel = StandInKernel(named(RELEASE, "x86_64"))
    kernel.at_checkpoint = lambda _: setattr(kernel, "hangs", kernel.crid > 0)
    config = f'[engine]\nlinux_cr = "{RELEASE}"\ncheckpoint_timeout = "8s"\nrestart_timeout = "8s"\n'

    def daemon() -> None:
        with RunningDaemon(tmp_path, config) as running:
            crid = str(running.crctl("checkpoint", "--pid", str(program.pid))["crid"])
            for words in (["checkpoint", "--pid", str(program.pid)], ["restart", crid, "--wait"]):
                stuck = running.run_crctl(*words)
                assert stuck.returncode == 1, stuck.stderr
                assert "took longer than 8 s" in stuck.stderr
                assert running.crctl("status")["engine"] == "kernel"
            until("thaw", lambda: not list(Path("/sys/fs/cgroup/freezer").glob("crd-*")))

    with sleep(tmp_path, 60) as program:
        kernel.run(daemon)
        program.assert_unharmed()
    *_, last = kernel.seen
    assert last.number == kernel.numbers.restart
    until("end of the task that was not restored", lambda: not Path(f"/proc/{last.tid}").exists())


def test_a_daemon_that_is_to_use_what_the_kernel_has_not_does_not_start(tmp_path: Path) -> None:
    running = RunningDaemon(tmp_path, '[engine]\nkind = "kernel"\n')
    with pytest.raises(AssertionError):
        running.start()
    eventually("the reason", lambda: "none was tried" in running.log)
    assert running.process
    assert running.process.wait() == 13
