"""Images of running programs, taken and restarted in a few words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crd.engine.api import CheckpointOptions, CheckpointResult, RestartOptions, RestartResult, checkpoint, restart
from crd.engine.crid import CridCounter
from crd.image.profile import Pages, SharedPages
from crd.image.reader import ImageReader
from crd.image.verify import verified
from crd.image.writer import ImageWriter
from tests.support.daemon import BIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crd.image.codec import Record
    from tests.support.victims import Program


def taken(program: Program, *, kill: bool = True) -> Path:
    """Take an image by copying, which leaves no child behind that would keep the pid busy; end the program."""
    path = program.directory / "image"
    with path.open("wb") as file:
        checkpoint(program.pid, file.fileno(), crids=CridCounter(path.parent / "crid"),
                   options=CheckpointOptions(method="copy"))
    if kill:
        program.kill()
    return path


def taken_with(program: Program, name: str = "image", **options: Any) -> tuple[Path, CheckpointResult]:
    """Take an image with these options of a checkpoint, and return what it came to, too."""
    path = program.directory / name
    with path.open("wb") as file:
        result = checkpoint(program.pid, file.fileno(), crids=CridCounter(program.directory / "crid"),
                            options=CheckpointOptions(**options))
    return path, result


_TAKES_IMAGES = """
import sys
from pathlib import Path
from crd.engine.api import checkpoint
from crd.engine.crid import CridCounter
print(flush=True)
while True:
    with open(sys.argv[2], "wb") as file:
        checkpoint(int(sys.argv[1]), file.fileno(), crids=CridCounter(Path(sys.argv[3])))
"""


def killed_while_taking(program: Program) -> Iterator[None]:
    """Take images of a program in another process, which is killed, each time a bit later."""
    for number in range(20):
        words = [sys.executable, "-c", _TAKES_IMAGES, str(program.pid), program.directory / "image",
                 program.directory / "crid"]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as worker:
            assert worker.stdout
            worker.stdout.readline()
            time.sleep(0.004 * number)
            worker.kill()
        yield


def restarted(image: Path, program: Program | None = None, **options: Any) -> RestartResult:
    """Restart an image here; its task is a child of ours."""
    with image.open("rb") as file:
        result = restart(file.fileno(), options=RestartOptions(**options))
    if program:
        program.restarted_as(result.root_pid)
    return result


def restarted_elsewhere(image: Path, program: Program, *words: str) -> dict[str, Any]:
    """Have ``crd restart`` do it, which does not change our own namespaces."""
    done = subprocess.run([BIN / "crd", "restart", "-i", image, "--json", *words], capture_output=True, check=False,
                          timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    result: dict[str, Any] = json.loads(done.stdout)
    program.restarted_as(result["root_pid"])
    return result


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    """Be somebody else for a while, on the file system and in permission checks."""
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def tail_of(function: Callable[[], object]) -> None:
    """Run in a child of ours whatever must not be done to ourselves; it passes if nothing is raised."""
    child = os.fork()
    if not child:
        status = 1
        with suppress(BaseException):
            function()
            status = 0
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def changed(image: Path, change: Callable[[Record], None]) -> Path:
    """Write an image again with records that were changed."""
    other = image.with_name("changed")
    with image.open("rb") as source, other.open("wb") as sink:
        reader = ImageReader(source)
        writer = ImageWriter(_Buffers(sink))
        writer.header(reader.header)
        for record in verified(reader):
            change(record)
            if isinstance(record, (Pages, SharedPages)):
                content, record.data = record.data, memoryview(b"")
                writer.write_bulk(record, content)
            else:
                writer.write(record)
        writer.finish()
    return other


class _Buffers:
    def __init__(self, file) -> None:
        self._file = file

    def write(self, *buffers) -> None:
        for buffer in buffers:
            self._file.write(buffer)
