"""System V IPC: what is somebody else's by now stays it, and a restart that fails leaves nothing."""

from __future__ import annotations

import ctypes
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from crd.engine.api import RestartOptions, restart
from crd.engine.userspace.ipc import semaphores
from crd.errors import ResourceChanged, RestartUnsupported, TargetUnsupported
from crd.target import sysv_ipc
from tests.engine.images import restarted, taken
from tests.engine.programs import interpreted
from tests.support.victims import Victim, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.victims import Program

pytestmark = pytest.mark.root

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.shmat.restype = ctypes.c_void_p
LIBC.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
LIBC.shmdt.argtypes = [ctypes.c_void_p]
SET_UP = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
number = libc.shmget(KEY, 8192, 0o1600)
assert number >= 0
address = libc.shmat(number, None, 0)
ctypes.memmove(address, b"content", 7)
open("number", "w").write(str(number))
"""


@contextmanager
def sharing(directory: Path, key: int = 0, more: str = "") -> Iterator[tuple[Program, int]]:
    with interpreted(directory, SET_UP.replace("KEY", str(key)) + more + "rest()\n") as program:
        number = int((directory / "number").read_text())
        try:
            yield program, number
        finally:
            LIBC.shmctl(number, 0, None)


@contextmanager
def attached(number: int) -> Iterator[int]:
    address = LIBC.shmat(number, None, 0)
    try:
        yield address
    finally:
        LIBC.shmdt(address)


def exists(number: int) -> bool:
    return any(one.id == number for one in sysv_ipc.segments())


def test_it_has_the_content_of_the_image_again(tmp_path: Path) -> None:
    with sharing(tmp_path) as (program, number):
        image = taken(program)
        with attached(number) as address:
            ctypes.memmove(address, b"changed", 7)
        restarted(image, program)
        with attached(number) as address:
            assert ctypes.string_at(address, 7) == b"content"


def test_a_removed_one_is_made_again_under_its_number(tmp_path: Path) -> None:
    with sharing(tmp_path, 0x43521001) as (program, number):
        image = taken(program)
        LIBC.shmctl(number, 0, None)
        assert not exists(number)
        restarted(image, program)
        assert [(one.key, one.attached) for one in sysv_ipc.segments() if one.id == number] == [(0x43521001, 1)]


def test_somebody_has_it_attached_now(tmp_path: Path) -> None:
    with sharing(tmp_path) as (program, number):
        image = taken(program)
        with attached(number) as address:
            with pytest.raises(ResourceChanged, match=rf"memory {number} is in use: it is attached 1 times"):
                restarted(image)
            assert ctypes.string_at(address, 7) == b"content"


def test_its_key_leads_to_another_one_now(tmp_path: Path) -> None:
    with sharing(tmp_path, 0x43521002) as (program, number):
        image = taken(program)
        LIBC.shmctl(number, 0, None)
        other = LIBC.shmget(0x43521002, 4096, 0o1600)
        try:
            with pytest.raises(ResourceChanged, match=f"leads to segment {other} now"):
                restarted(image)
        finally:
            LIBC.shmctl(other, 0, None)


def test_nothing_is_left_of_a_restart_that_is_called_off(tmp_path: Path) -> None:
    class CalledOffError(Exception):
        pass

    def refuse(_: object) -> None:
        raise CalledOffError

    with sharing(tmp_path) as (program, number):
        image = taken(program)
        LIBC.shmctl(number, 0, None)
        with image.open("rb") as file, pytest.raises(CalledOffError):
            restart(file.fileno(), options=RestartOptions(), confirm=refuse)
        assert not exists(number)


def test_an_image_is_no_way_to_the_memory_of_others(tmp_path: Path) -> None:
    """A user's task that had it attached before it became that user's is refused."""
    become = "os.setgroups([]); os.setresgid(4201, 4201, 4201); os.setresuid(4201, 4201, 4201)\nopen('/dev/null')\n"
    tmp_path.chmod(0o777)
    with sharing(tmp_path, more=become) as (program, number):
        image = taken(program)
        with pytest.raises(RestartUnsupported, match=re.escape(f"memory {number} is not of the user of the task")):
            restarted(image)


def test_one_that_a_process_outside_has_attached(tmp_path: Path) -> None:
    with sharing(tmp_path) as (program, number), attached(number):
        with pytest.raises(TargetUnsupported) as refused:
            taken(program)
        assert [reason.code for reason in refused.value.reasons] == ["memory.shared"]
        program.assert_unharmed()


@contextmanager
def queueing(directory: Path, *words: str) -> Iterator[tuple[Victim, int, int]]:
    """A victim, its semaphores and its message queue."""
    with Victim("queues", directory, *words) as victim:
        key = 0x43530000 | victim.pid & 0xFFFF
        number, queue = LIBC.semget(key, 0, 0), LIBC.msgget(key, 0)
        try:
            yield victim, number, queue
        finally:
            LIBC.semctl(number, 0, 0)
            LIBC.msgctl(queue, 0, None)


def test_semaphores_and_messages_that_are_gone_are_made_again(tmp_path: Path) -> None:
    with queueing(tmp_path) as (victim, number, queue):
        image = taken(victim)
        assert LIBC.semctl(number, 0, 0) == LIBC.msgctl(queue, 0, None) == 0
        assert restarted(image, victim).notes == ()
        victim.verify()


def test_those_that_are_there_are_left_as_they_are(tmp_path: Path) -> None:
    with queueing(tmp_path) as (victim, number, queue):
        image = taken(victim)
        LIBC.semctl(number, 1, 16, 9)  # SETVAL
        notes = restarted(image, victim).notes
        assert [note.partition(" was there")[0] for note in notes] == [
            f"the set of System V semaphores {number}", f"the System V message queue {queue}"]
        assert LIBC.semctl(number, 1, 12) == 9  # GETVAL


def test_semaphores_are_looked_at_in_the_stop_if_they_may_have_been_used_since(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with queueing(tmp_path) as (victim, number, _):
        line = next(line for line in sysv_ipc.semaphore_lines() if sysv_ipc.Semaphores.parsed(line).id == number)
        monkeypatch.setattr(semaphores, "_A_WHILE_SECONDS", 3600)
        assert line not in semaphores.look()  # it has been used just now
        monkeypatch.setattr(semaphores, "_A_WHILE_SECONDS", -3)
        at_rest = semaphores.look()
        assert victim.pid in at_rest[line]
        threads = {victim.pid: victim.tasks()}
        assert number in {record.number for record in semaphores.dump(threads, at_rest)}
        at_rest[line] = {1}
        assert number not in {record.number for record in semaphores.dump(threads, at_rest)}
        until("time of another use, in whole seconds", lambda: LIBC.semctl(number, 1, 16, 9) or (  # SETVAL
            line not in sysv_ipc.semaphore_lines()))
        assert number in {record.number for record in semaphores.dump(threads, at_rest)}


def test_a_restart_that_is_called_off_makes_no_semaphores(tmp_path: Path) -> None:
    class CalledOffError(Exception):
        pass

    def refuse(_: object) -> None:
        raise CalledOffError

    with queueing(tmp_path) as (victim, number, queue):
        image = taken(victim)
        LIBC.semctl(number, 0, 0)
        LIBC.msgctl(queue, 0, None)
        with image.open("rb") as file, pytest.raises(CalledOffError):
            restart(file.fileno(), options=RestartOptions(), confirm=refuse)
        assert number not in {one.id for one in sysv_ipc.semaphores()}
        assert queue not in {one.id for one in sysv_ipc.queues()}


def test_a_key_of_semaphores_that_leads_elsewhere_now(tmp_path: Path) -> None:
    with queueing(tmp_path) as (victim, number, _queue):
        image = taken(victim)
        LIBC.semctl(number, 0, 0)
        other = LIBC.semget(0x43530000 | victim.pid & 0xFFFF, 1, 0o1600)
        try:
            with pytest.raises(ResourceChanged, match=f"semaphores {other} now, not {number}"):
                restarted(image)
        finally:
            LIBC.semctl(other, 0, 0)


def test_operations_that_are_to_be_undone(tmp_path: Path) -> None:
    """The kernel tells nobody what they are."""
    with queueing(tmp_path, "undo") as (victim, _number, _queue):
        with pytest.raises(TargetUnsupported) as refused:
            taken(victim)
        assert [reason.code for reason in refused.value.reasons] == ["task.sem-undo"]
        victim.assert_unharmed()
        victim.verify()
