"""A copy that is let run in a sandbox, beside the original: it runs, and nobody outside is any the wiser."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from crd.errors import CrdError
from crd.image.profile import Thread
from crd.native.tracee import Registers
from crd.target import procfs
from tests.engine.images import changed, taken
from tests.engine.programs import interpreted
from tests.support.victims import Program, Victim, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from crd.image.codec import Record

pytestmark = pytest.mark.root

REHEARSE = """
import json, sys
from dataclasses import asdict
from crd.engine.rehearsal import rehearse
from crd.engine.userspace import watch
from crd.errors import CrdError
watch._AT_LEAST_SECONDS = float(sys.argv[1]) or watch._AT_LEAST_SECONDS
try:
    answer = asdict(rehearse(0))
except CrdError as error:
    answer = error.to_json()
print(json.dumps(answer))
"""
NOWHERE = 0x10


def rehearsed(image: Path, *, at_least_seconds: float = 0) -> dict[str, Any]:
    """Rehearse an image in another process, whose namespaces that changes; return the result, or the error."""
    with image.open("rb") as file:
        done = subprocess.run([sys.executable, "-c", REHEARSE, str(at_least_seconds)], stdin=file, capture_output=True,
                              check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def copies(pid: int) -> set[int]:
    """Return the processes that have this number in a namespace of their own."""
    found = set()
    for each in procfs.pids():
        with suppress(CrdError):
            _, *inside = procfs.status(each)["NSpid"].split()
            if inside[-1:] == [str(pid)]:
                found.add(each)
    return found


@pytest.mark.parametrize("name", ["stopped", "files", "unixes", "inets", "terminals", "segments"])
def test_a_copy_runs_beside_the_original(tmp_path: Path, name: str) -> None:
    with Victim(name, tmp_path) as victim:
        answer = rehearsed(taken(victim, kill=False))
        assert "error" not in answer, answer
        assert {seen["what"] for seen in answer["seen"]} == {"stayed stopped" if name == "stopped" else "ran"}
        assert not copies(victim.pid), "one is left"
        if name != "stopped":
            victim.assert_unharmed()
            victim.verify()


REACHES_OUT = """
import os, signal, socket, threading, time
outside = int(open("outside").read())
log = open("log", "a")
fifo = os.open("fifo", os.O_RDWR | os.O_NONBLOCK)
listener = socket.socket(socket.AF_UNIX)
listener.bind("listener")
listener.listen()
port = int(open("port").read())
child = os.fork()
threading.Thread(target=rest).start()
number = 0
while True:
    number += 1
    line = f"{child} {number}\\n"
    log.write(line)
    log.flush()
    with open("fresh", "a") as fresh: fresh.write(line)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as near, socket.socket(type=socket.SOCK_DGRAM) as far:
        try: near.sendto(line.encode(), "outbox")
        except OSError: pass
        far.sendto(line.encode(), ("127.0.0.1", port))
    try: os.write(fifo, line.encode())
    except BlockingIOError: pass
    try: os.kill(outside, signal.SIGUSR1 if os.path.exists("quiet") else 0)
    except ProcessLookupError: open("alone", "w").close()
    time.sleep(0.002)
"""


def test_nothing_that_a_copy_does_is_seen_outside(tmp_path: Path) -> None:
    with ExitStack() as stack:
        near = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        near.bind(str(tmp_path / "outbox"))
        far = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
        far.bind(("127.0.0.1", 0))
        (tmp_path / "port").write_text(str(far.getsockname()[1]))
        (tmp_path / "outside").write_text(str(os.getpid()))
        os.mkfifo(tmp_path / "fifo")
        pipe = os.open(tmp_path / "fifo", os.O_RDWR | os.O_NONBLOCK)
        stack.callback(os.close, pipe)
        program = stack.enter_context(interpreted(tmp_path, REACHES_OUT))
        until("a round of it or its child", lambda: (tmp_path / "fresh").exists() and (
            (tmp_path / "fresh").read_text().count(" 2\n")))
        image = taken(program, kill=False)
        family = program.family()
        for pid in family:  # from now on the copy alone could
            os.kill(pid, signal.SIGSTOP)
        until("a stop", lambda: all(procfs.stat(pid).state == "T" for pid in family))
        seen = [emptied(lambda: os.read(pipe, 4096)), emptied(lambda: near.recv(64, socket.MSG_DONTWAIT)),
                emptied(lambda: far.recv(64, socket.MSG_DONTWAIT)), (tmp_path / "log").read_bytes(),
                (tmp_path / "fresh").read_bytes()]
        assert all(seen)
        names = set(os.listdir(tmp_path))
        answer = rehearsed(image)
        assert [one["what"] for one in answer["seen"]] == ["ran", "ran"], answer
        assert emptied(lambda: os.read(pipe, 4096)) == b""
        assert emptied(lambda: near.recv(64, socket.MSG_DONTWAIT)) == b""
        assert emptied(lambda: far.recv(64, socket.MSG_DONTWAIT)) == b""
        assert [(tmp_path / "log").read_bytes(), (tmp_path / "fresh").read_bytes()] == seen[3:]
        assert set(os.listdir(tmp_path)) == names, "it found nobody outside, and could tell nobody"
        for pid in family:
            os.kill(pid, signal.SIGCONT)
        until("it runs", program.is_running)
        program.assert_unharmed()
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(tmp_path / "listener"))
        program.kill_tree()


def emptied(receive: Callable[[], bytes]) -> bytes:
    """Return all that waits somewhere."""
    found = b""
    while True:
        try:
            found += receive()
        except BlockingIOError:
            return found


def test_a_copy_that_crashes_fails(tmp_path: Path) -> None:
    def lead_nowhere(record: Record) -> None:
        if isinstance(record, Thread):
            registers = Registers.from_bytes(record.registers)
            registers.rip = NOWHERE
            record.registers = registers.to_bytes()

    with interpreted(tmp_path, "rest()") as program:
        answer = rehearsed(changed(taken(program, kill=False), lead_nowhere))
        assert answer["error"] == "restart.copy-failed"
        assert f"process {program.pid} (python" in answer["message"]
        assert "ended by SIGSEGV" in answer["message"]
        program.assert_unharmed()


def test_a_copy_may_handle_its_faults_and_end(tmp_path: Path) -> None:
    source = """
import os, signal
child = os.fork()
if not child:
    while os.path.exists("original"): pass
    os._exit(3)
handled = []
signal.signal(signal.SIGABRT, lambda *_: handled.append(1))
while not os.waitpid(child, os.WNOHANG)[0]:
    if not os.path.exists("ready"): open("ready", "w").close()
    handled.clear()
    os.kill(os.getpid(), signal.SIGABRT)
os._exit(len(handled))
"""
    (tmp_path / "original").touch()
    with interpreted(tmp_path, source) as program:
        image = taken(program, kill=False)
        (tmp_path / "original").unlink()
        answer = rehearsed(image, at_least_seconds=60)  # less if all have ended
        assert [seen["what"] for seen in answer["seen"]] == ["ended with exit status 1", "ended with exit status 3"]
        program.kill_tree()


def test_an_image_whose_program_has_changed_is_refused(tmp_path: Path) -> None:
    program_file = tmp_path / "sleeper"
    program_file.write_bytes(Path("/bin/sleep").read_bytes())
    program_file.chmod(0o755)
    with Program([program_file, "1000"], tmp_path) as program:
        until("the program", lambda: Path(f"/proc/{program.pid}/comm").read_text() == "sleeper\n")
        image = taken(program)
        with program_file.open("ab") as file:
            file.write(b"more")
        answer = rehearsed(image)
        assert answer["error"] == "restart.resource-changed"
        assert "sleeper" in answer["message"]
