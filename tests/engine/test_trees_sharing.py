"""What the processes of a tree share, be it open files or memory that a fork has left them in common."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from crd.engine.stream import DescriptorSink
from crd.image.profile import Pages, SharedPages
from crd.image.reader import ImageReader
from crd.image.writer import ImageWriter
from crd.target import procfs
from tests.engine.images import restarted, restarted_elsewhere, taken_with
from tests.engine.test_trees import is_of
from tests.support.victims import Program, Victim, python_script, until

pytestmark = pytest.mark.root


EVERYTHING_SHARED = """
import mmap, os, select, socket, struct, sys, time
memory = os.memfd_create("shared")
os.ftruncate(memory, 8192)
area = mmap.mmap(memory, 8192)
event, poll = os.eventfd(3, os.EFD_NONBLOCK), select.epoll()
poll.register(event, select.EPOLLIN)
ours, theirs = socket.socketpair()
listener = socket.socket(socket.AF_UNIX)
listener.bind("listener")
listener.listen(4)
server = socket.create_server(("127.0.0.1", 0))
tcp = socket.create_connection(server.getsockname())
served = server.accept()[0]
child = os.fork()
if not child:
    tcp.close()
    poll.unregister(event)
    poll.register(theirs, select.EPOLLIN)
    while True:
        for fd, _ in poll.poll():
            asked = theirs.recv(100)
            got = os.eventfd_read(event)
            theirs.send(b"%d %d %s" % (os.getpid(), got, bytes(area[:asked[0]])))
            served.send(served.recv(100).upper())
served.close()
tcp.send(b"tcp")
pidfd = os.pidfd_open(child)
ours.setblocking(True)
open("ready", "w").close()
while not os.path.exists("go"): time.sleep(0.01)
area[:5] = b"hello"
os.eventfd_write(event, 4)
ours.send(bytes([5]))
answer = ours.recv(100)
client = socket.socket(socket.AF_UNIX)
client.connect("listener")
about = open(f"/proc/self/fdinfo/{pidfd}").read()
alive = f"Pid:\\t{child}\\n" in about and tcp.recv(100) == b"TCP"
with open("new", "w") as file: file.write(f"{answer == b'%d 7 hello' % child} {alive}")
os.rename("new", "answer")
while True: time.sleep(0.01)
"""


def test_whatever_two_processes_share_is_shared_again(tmp_path: Path) -> None:
    """An epoll set that the child has changed, an eventfd, a mapped memory file, sockets, a pidfd."""
    with python_script(tmp_path, EVERYTHING_SHARED) as program:
        until("ready", (tmp_path / "ready").exists)
        for _ in range(2):
            image, _ = taken_with(program)
            until("the end of the snapshots", lambda: not [pid for pid in procfs.pids() if is_of(program, pid)])
            program.kill_tree()
            restarted(image, program)
        (tmp_path / "go").touch()
        until("an answer", lambda: (tmp_path / "answer").exists() or not program.is_running())
        assert (tmp_path / "answer").read_text() == "True True", program.stderr()


HEIRS = """
import os, time
heirloom = bytearray(os.urandom(1 << 20) * 32)
def heir(number, make=lambda: None):
    if os.fork() == 0:
        heirloom[number << 16] ^= 255
        make()
        open(f"ready{number}", "w").close()
        while True: time.sleep(0.05)
heir(1)
heir(2, lambda: heir(3, lambda: heir(4)))
open("ready0", "w").close()
while True: time.sleep(0.05)
"""
MIB = 1 << 20


def proportional_bytes(program: Program) -> int:
    """Return what the family takes of the machine's memory; a page that n processes share counts for one in each n."""
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in program.family()]
    return sum(int(text.partition("\nPss:")[2].split()[0]) << 10 for text in texts)


@pytest.mark.parametrize("method", ["auto", "copy"])
@pytest.mark.parametrize("pids", ["original", "namespace"])
def test_memory_that_is_shared_copy_on_write_stays_so(tmp_path: Path, method: str, pids: str) -> None:
    """Five processes with 32 MiB each that are the same but for a page: reading them and a restart keep it so."""
    with python_script(tmp_path, HEIRS) as program:
        until("all", lambda: all((tmp_path / f"ready{number}").exists() for number in range(5)))
        before = proportional_bytes(program)
        assert before < 64 * MIB
        image, _ = taken_with(program, method=method)
        until("the end of the snapshots", lambda: not [pid for pid in procfs.pids() if is_of(program, pid)])
        assert proportional_bytes(program) < before + 4 * MIB
        program.kill_tree()
        if pids == "original":
            restarted(image, program)
        else:
            restarted_elsewhere(image, program, "--pidns")
        assert len(program.family()) == 5
        assert proportional_bytes(program) < before + 4 * MIB


def test_memory_may_come_in_any_order(tmp_path: Path) -> None:
    """Whoever writes an image need not tell the memory of parents first, nor that of a process at once."""
    with Victim("heirs", tmp_path, "adopts") as victim:
        image, _ = taken_with(victim, method="copy")
        victim.kill_tree()
        with image.open("rb") as source, (tmp_path / "mixed").open("wb") as sink:
            reader, told = ImageReader(source), Counter[int]()
            memory: list[tuple[int, int, Pages]] = []
            writer = ImageWriter(DescriptorSink(sink.fileno()))
            writer.header(reader.header)
            for record in reader:
                if isinstance(record, Pages):
                    told[record.pid] += 1
                    copy = Pages(pid=record.pid, runs=record.runs, data=memoryview(bytes(record.data)))
                    memory.append((told[record.pid], -record.pid, copy))
                elif isinstance(record, SharedPages):
                    content, record.data = record.data, memoryview(b"")
                    writer.write_bulk(record, content)
                else:
                    writer.write(record)
            assert max(told.values()) > 1
            for _, _, record in sorted(memory, key=lambda one: one[:2]):
                content, record.data = record.data, memoryview(b"")
                writer.write_bulk(record, content)
            writer.finish()
        restarted(tmp_path / "mixed", victim)
        victim.verify()
