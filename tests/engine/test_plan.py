"""What a restart would make, and everything that stands in its way, is told before anything is made."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from crd.engine.api import CheckpointOptions, Files, Pids, RestartOptions, RestartPlan, checkpoint, plan
from crd.engine.crid import CridCounter
from crd.image.objects import RegularFile
from crd.image.profile import Profile
from tests.engine.images import restarted, taken
from tests.engine.programs import interpreted
from tests.engine.test_restart_failures import changed
from tests.support.daemon import BIN
from tests.support.victims import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crd.image.codec import Record
    from tests.support.victims import Program

pytestmark = pytest.mark.root

HOLDER = """
import fcntl, os, socket, threading
data = os.open("data", os.O_RDWR | os.O_CREAT)
os.write(data, b"content")
fcntl.lockf(data, fcntl.LOCK_EX)
os.mkfifo("fifo")
fifo = os.open("fifo", os.O_RDWR)
ends = os.pipe()
tcp = socket.create_server(("127.0.0.1", 0))
named = socket.socket(socket.AF_UNIX)
named.bind("named")
named.listen()
master, slave = os.openpty()
threading.Thread(target=rest).start()
with open("port", "w") as file:
    file.write(f"{tcp.getsockname()[1]} {os.ttyname(slave)}")
os.rename("port", "told")
rest()
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    """A process that holds one of many things."""
    spare = [os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC) for _ in range(64)]  # others take low numbers
    with interpreted(tmp_path, HOLDER) as program:
        until("all of them", (tmp_path / "told").exists)
        for master in spare:
            os.close(master)
        yield program


def told(image: Path, **options: Any) -> RestartPlan:
    with image.open("rb") as file:
        return plan(file.fileno(), options=RestartOptions(**options))


def messages(found: RestartPlan) -> str:
    return "\n".join(clash["message"] for clash in found.clashes)


def everything(program: Program) -> tuple[Any, ...]:
    """What a plan must not change."""
    directory = program.directory
    return (sorted((path.name, path.lstat().st_ino, path.lstat().st_mtime_ns) for path in directory.iterdir()),
            os.listdir("/proc/self/fd"), program.is_there())


def test_what_would_be_made_if_nothing_is_in_the_way(program: Program) -> None:
    image = taken(program)
    port, terminal = (program.directory / "told").read_text().split()
    before = everything(program)
    found = told(image)
    assert not found.clashes, found.clashes
    assert everything(program) == before
    makes = {(made.kind, made.name): made.how for made in found.makes}
    [task] = [how for (kind, name), how in makes.items() if kind == "task" and name.startswith(f"{program.pid} (")]
    assert "2 threads, uid 0" in task
    assert makes["file", f"{program.directory}/data"] == "opened"
    assert makes["POSIX lock", f"{program.directory}/data"] == "exclusive"
    assert makes["named pipe", f"{program.directory}/fifo"] == "0 bytes in it"
    assert makes["TCP port", f"127.0.0.1 {port}"] == "listens"
    assert makes["unix socket", "named"] == f"{program.directory}/named"
    assert makes["terminal", terminal] == "0 by 0"
    assert makes["pipe", ""] == "1"
    restarted(image, program)


def test_all_that_is_in_the_way_is_told_at_once(program: Program) -> None:
    image = taken(program)
    directory = program.directory
    port, terminal = (directory / "told").read_text().split()
    (directory / "fifo").unlink()
    (directory / "data").write_bytes(b"other content")
    (directory / "named").unlink()
    number = int(terminal.rpartition("/")[2])
    masters: list[int] = []
    listener = f"import socket\nkept = socket.create_server(('127.0.0.1', {port}))\nopen('listens', 'w')\nrest()"
    (directory / "other").mkdir()
    with (interpreted(directory / "other", listener) as other, (directory / "data").open("rb+") as data,
          socket.socket(socket.AF_UNIX) as named):
        until("the listener", (directory / "other" / "listens").exists)
        fcntl.lockf(data, fcntl.LOCK_EX)
        named.bind(str(directory / "named"))
        while not Path(terminal).exists() and len(masters) <= number:
            masters.append(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))
        before = everything(program)
        found = told(image, files=Files.FAIL)
        assert everything(program) == before
        text = messages(found)
        assert f"no named pipe {directory}/fifo" in text
        assert f"{directory}/data has changed since the image was taken (size)" in text
        assert f"{directory}/data is locked by pid {os.getpid()}" in text
        assert f"127.0.0.1 port {port}: Address already in use, by pid {other.pid} " in text
        assert f"{directory}/named is in use by another process" in text
        assert f"the terminal {terminal} is in use" in text
        assert {clash["error"] for clash in found.clashes} == {"restart.resource-changed"}
        assert all("hint" in clash for clash in found.clashes)
    for master in masters:
        os.close(master)


def test_numbers_that_are_in_use(program: Program) -> None:
    tids = program.tasks()
    image = taken(program, kill=False)
    found = [clash for clash in told(image).clashes if clash["error"] == "restart.pid-in-use"]
    assert sorted(clash["pid"] for clash in found) == tids
    assert not [clash for clash in told(image, pids=Pids.NEW).clashes if clash["error"] == "restart.pid-in-use"]
    program.assert_unharmed()


def test_a_processor_that_differs(program: Program) -> None:
    def change(record: Record) -> None:
        if isinstance(record, Profile):
            record.xcr0 ^= 1 << 17

    image = changed(taken(program), change)
    before = everything(program)
    assert "a processor that differs in AMX" in messages(told(image))
    assert everything(program) == before


def test_what_a_rollback_would_do(program: Program) -> None:
    image = program.directory / "image"
    with image.open("wb") as file:
        checkpoint(program.pid, file.fileno(), crids=CridCounter(program.directory / "crid"),
                   options=CheckpointOptions(method="copy", save_files_bytes=1 << 20))
    program.kill()
    data = program.directory / "data"

    def how(**options: Any) -> str:
        [made] = [made for made in told(image, **options).makes if (made.kind, made.name) == ("file", str(data))]
        return made.how

    assert how(files=Files.ROLLBACK) == "opened, left as it is"
    data.write_bytes(b"content and more")
    assert how(files=Files.ROLLBACK) == "opened, cut off to 7 bytes"
    data.write_bytes(b"another")
    assert how(files=Files.ROLLBACK) == "opened, its saved content put back"
    assert how() == "opened"
    assert data.read_bytes() == b"another"


def test_missing_files_are_all_named(program: Program) -> None:
    def change(record: Record) -> None:
        if isinstance(record, RegularFile) and record.path.endswith("/data"):
            record.path = "/nowhere/at all"

    image = changed(taken(program), change)
    (program.directory / "fifo").unlink()
    text = messages(told(image))
    assert "/nowhere/at all: No such file" in text
    assert "no named pipe" in text


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command(program: Program, as_json: bool) -> None:  # noqa: FBT001
    image = taken(program)

    def run(status: int) -> str:
        done = subprocess.run([BIN / "crd", "restart", "-i", image, "--plan", *(["--json"] if as_json else [])],
                              capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
        assert not program.is_there()
        return done.stdout

    if as_json:
        assert json.loads(run(0))["clashes"] == []
    else:
        assert "Nothing stands in the way." in run(0)
    (program.directory / "fifo").unlink()
    if as_json:
        assert [clash["path"] for clash in json.loads(run(14))["clashes"]] == [str(program.directory / "fifo")]
    else:
        assert "One thing stands in the way:" in run(14)
