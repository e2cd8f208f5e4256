"""The same tree, saved, killed and brought back twenty times in a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.engine.images import restarted, taken
from tests.engine.programs import interpreted
from tests.support.victims import until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

FAMILY = """
import os, select, signal, socket, subprocess, threading, time
listener = socket.create_server(("127.0.0.1", 0))
ours, theirs = socket.socketpair()
for_child, from_parent = os.pipe()
event = os.eventfd(0)
def repeat():
    while word := os.read(for_child, 9):
        os.eventfd_write(event, 1)
        theirs.sendall(word)
if os.fork() == 0:
    os.close(2)  # what it may say when its parent is killed before it
    threading.Thread(target=repeat).start()
    peer = listener.accept()[0]
    try:
        while word := peer.recv(9):
            peer.sendall(word)
    finally:
        os._exit(0)
client = socket.create_connection(listener.getsockname())
shell = subprocess.Popen(["sh", "-c", "while read word; do echo $word; done"], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE)
watch = select.epoll()
watch.register(event, select.EPOLLIN)
alarms = []
signal.signal(signal.SIGALRM, lambda *_: alarms.append(None))
signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
ticks = []
threading.Thread(target=lambda: [(time.sleep(0.005), ticks.append(None)) for _ in range(10**9)], daemon=True).start()
count = os.open("count", os.O_RDWR)
open("ready", "w").close()
for number in range(1, 10**9):
    word = b"%09d" % number
    os.write(from_parent, word)
    assert ours.recv(9) == word
    assert watch.poll(10) == [(event, select.EPOLLIN)] and os.eventfd_read(event) == 1
    client.sendall(word)
    assert client.recv(9) == word
    shell.stdin.write(word + b"\\n"); shell.stdin.flush()
    assert shell.stdout.readline() == word + b"\\n"
    os.pwrite(count, b"%012d %012d %012d" % (number, len(alarms), len(ticks)), 0)
"""


NOTHING = " ".join(3 * [12 * "0"])


def test_twenty_cycles(tmp_path: Path) -> None:
    def counts() -> list[int]:
        return [int(word) for word in (tmp_path / "count").read_text().split()]

    def alive() -> bool:
        assert program.is_running(), program.stderr()
        return True

    (tmp_path / "count").write_text(NOTHING)
    nothing = counts()
    with interpreted(tmp_path, FAMILY) as program:
        until("a count", lambda: counts() != nothing)
        family = program.family()
        for _ in range(20):
            image = taken(program, kill=False)
            program.kill_tree()
            (tmp_path / "count").write_text(NOTHING)
            assert restarted(image, program).notes == ()
            until("a count", lambda: alive() and counts() != nothing)
            before = counts()
            until("all to go on", lambda so_far=before: alive() and all(
                now > then for now, then in zip(counts(), so_far, strict=True)))
            assert program.family() == family
        assert program.stderr() == ""
