"""Many images of a program that changes all the time: any may be forgotten, and any other brings back what was."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.daemon import RunningDaemon, eventually

pytestmark = pytest.mark.root

IMAGES = int(os.environ.get("CRD_TEST_IMAGES", "40"))
PROGRAM = """
import hashlib, mmap, os, random, time
size = 12 << 20
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, size, 4096):
    memory[at:at + 64] = random.randbytes(64)
step = 0
while True:
    while not os.path.exists("go") and not os.path.exists("check"):
        time.sleep(0.001)
    if os.path.exists("go"):
        os.unlink("go")
        step += 1
        for _ in range(30):
            at = random.randrange(size - 100)
            memory[at:at + 100] = random.randbytes(100)
        page = random.randrange(size >> 12) << 12
        memory.madvise(mmap.MADV_DONTNEED, page, 4096)
        name = f"step-{step}"
    else:
        os.unlink("check")
        name = "checked"
    with open("writing", "w") as file:
        file.write(f"{step} {hashlib.blake2b(memory).hexdigest()}")
    os.rename("writing", name)
"""


def test_any_image_brings_back_what_was_whichever_others_are_forgotten(tmp_path: Path) -> None:
    home = tmp_path / "program"
    home.mkdir()
    chance = random.Random(3)
    with RunningDaemon(tmp_path) as daemon, (home / "errors").open("wb") as errors:
        process = subprocess.Popen([sys.executable, "-S", "-c", PROGRAM], cwd=home, stdin=subprocess.DEVNULL,
                                   stdout=errors, stderr=errors, start_new_session=True)
        pids = {process.pid}
        try:
            daemon.crctl("target", "add", "it", "--pid", str(process.pid), "--every", "1000h")
            written: dict[int, str] = {}
            methods = set()
            for step in range(1, IMAGES + 1):
                (home / "go").touch()
                eventually("a step", (home / f"step-{step}").exists)
                image = daemon.crctl("checkpoint", "it")
                methods.add(image["method"])
                written[image["crid"]] = (home / f"step-{step}").read_text()
            assert methods == {"snapshot", "precopy"}
            forgotten = chance.sample(sorted(written), len(written) // 2)
            for crid in forgotten:
                if crid != max(written):
                    daemon.crctl("forget", str(crid))
            process.kill()
            process.wait()
            left = sorted({*written} - {*forgotten})
            for crid in chance.sample(left, min(10, len(left))):
                assert daemon.crctl("verify", str(crid))
                daemon.crctl("restart", str(crid), "--wait")
                (home / "check").touch()
                eventually("the check", (home / "checked").exists)
                assert (home / "checked").read_text() == written[crid]
                (home / "checked").unlink()
                os.kill(process.pid, signal.SIGKILL)
                eventually("its end", lambda: not Path(f"/proc/{process.pid}").exists())
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
