"""POSIX message queues: what waits in them is neither lost nor doubled, whoever is killed."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from crd.engine.userspace.fds import mqueue_data
from crd.errors import EngineError, NativeError, ResourceChanged, TargetUnsupported
from tests.engine.images import killed_while_taking, restarted, taken
from tests.engine.programs import interpreted
from tests.support.victims import Victim

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

FLAGS = os.O_RDWR | os.O_NONBLOCK | os.O_CREAT | os.O_EXCL


@pytest.fixture
def queue() -> Iterator[int]:
    """A queue with messages."""
    name = f"/crd-test-{os.getpid()}"
    fd = mqueue_data.create(name, FLAGS, 0o600, 10, 100)
    mqueue_data.unlink(name)
    for number in range(8):
        mqueue_data.put(fd, (number % 3, b"%d" % number))
    yield fd
    os.close(fd)


WAITING = [(2, b"2"), (2, b"5"), (1, b"1"), (1, b"4"), (1, b"7"), (0, b"0"), (0, b"3"), (0, b"6")]


def test_a_look_leaves_all_as_it_is(queue: int) -> None:
    assert mqueue_data.look(queue) == mqueue_data.look(queue) == WAITING


@pytest.mark.parametrize("calls", range(8))
@pytest.mark.parametrize("what", ["_take", "put"])
def test_the_process_that_looks_is_killed(queue: int, monkeypatch: pytest.MonkeyPatch, what: str, calls: int) -> None:
    """At any message, when it is being taken or put back."""
    parent, before = os.getpid(), getattr(mqueue_data, what)
    left = [calls]

    def die_in_time() -> None:
        if os.getpid() != parent and not left[0]:
            os.kill(os.getpid(), 9)
        left[0] -= 1

    def take(fd: int) -> Iterator[mqueue_data.Message]:
        for message in before(fd):
            yield message
            die_in_time()  # it has been told of that

    def put(fd: int, message: mqueue_data.Message) -> None:
        die_in_time()
        before(fd, message)

    monkeypatch.setattr(mqueue_data, what, {"_take": take, "put": put}[what])
    with pytest.raises(EngineError, match="has ended"):
        mqueue_data.look(queue)
    monkeypatch.undo()
    assert mqueue_data.look(queue) == WAITING


def test_those_that_are_gone_are_made_again_and_others_left(tmp_path: Path) -> None:
    with Victim("mqueues", tmp_path) as victim:
        image = taken(victim)
        mqueue_data.unlink(f"/crd-victim-{victim.pid}-0")
        notes = restarted(image, victim).notes
        assert notes == (f"the message queue /crd-victim-{victim.pid}-1 was there, and was left as it is",)
        victim.verify()


def test_another_queue_has_the_name(tmp_path: Path) -> None:
    with Victim("mqueues", tmp_path) as victim:
        image = taken(victim)
        names = [f"/crd-victim-{victim.pid}-{index}" for index in range(3)]
        other = mqueue_data.create(names[2], FLAGS, 0o600, 1, 1)
        try:
            with pytest.raises(ResourceChanged, match=f"{names[2]} is another one"):
                restarted(image)
        finally:
            os.close(other)
            for name in names:
                with suppress(NativeError):
                    mqueue_data.unlink(name)


def test_who_is_to_be_told_and_who_has_it_too(tmp_path: Path) -> None:
    name = f"/crd-test-{os.getpid()}"
    source = ("import ctypes, struct\nlibc = ctypes.CDLL(None, use_errno=True)\n"
              f"queue = libc.mq_open({name.encode()!r}, 2)\nassert queue >= 0\n"
              "event = ctypes.create_string_buffer(struct.pack('Qii48x', 0, 10, 0))\n"
              "assert libc.mq_notify(queue, event) == 0\nrest()\n")
    fd = mqueue_data.create(name, FLAGS, 0o600, 10, 100)
    try:
        with interpreted(tmp_path, source) as program:
            with pytest.raises(TargetUnsupported) as refused:
                taken(program)
            notified, elsewhere = refused.value.reasons
            assert notified.code == elsewhere.code == "fd.mqueue"
            assert "mq_notify" in notified.reason
            assert "is a message queue that is open elsewhere too" in elsewhere.reason
            program.assert_unharmed()
    finally:
        os.close(fd)
        mqueue_data.unlink(name)


def test_nothing_is_lost_when_checkpoints_are_killed(tmp_path: Path) -> None:
    with Victim("mqueues", tmp_path) as victim:
        for _ in killed_while_taking(victim):
            victim.assert_unharmed()
        victim.verify()
