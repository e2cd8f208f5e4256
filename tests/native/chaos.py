"""Injectors that are killed at random times: ``python -m tests.native.chaos PID VARIANT KILLS SEED``.

A warm parent forks an injector, which freezes the target, injects, and lets it go, over and over; some milliseconds
later the parent kills it and forks the next.  Meanwhile it sends SIGRTMIN to the target.  It prints one JSON object:
kills, injections, retries, signals sent, and injectors that ended by themselves.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import struct
import sys
import time
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from crd.engine.userspace.snapshot import gap
from crd.errors import InjectionInterrupted, TraceeGone
from crd.native import tracee
from crd.native.detour import Detour, check_ways, take
from crd.native.inject import Call, Injector, Scratch
from crd.native.memory import Memory
from crd.native.room import Area
from crd.native.survey import CallTable, Survey
from crd.native.syscall import NR
from crd.native.threads import Room, ThreadGroup
from crd.target import procfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crd.native.tracee import Registers, Stop

LONGEST_LIFE_SECONDS = 0.012
LIFE_SECONDS_MAX = 5.0
LONGEST_SILENCE_SECONDS = 0.004
INJECTIONS, RETRIES = 0, 8  # offsets into the counters that all injectors share
PR_GET_TID_ADDRESS = 40
WALL = 0x4000_0000


def vdso(pid: int) -> tuple[int, int]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if line.endswith("[vdso]"):
            start, end = line.split()[0].split("-")
            return int(start, 16), int(end, 16)
    raise AssertionError(f"{pid} has no vdso")


class Threads(dict[int, "Registers"]):
    """Registers of stopped threads by tid, and how they stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.stops: dict[int, Stop] = {}


@contextmanager
def frozen(pid: int) -> Iterator[Threads]:
    """Stop all threads; a signal whose delivery was stopped is delivered at the end."""
    threads = Threads()
    due: dict[int, int] = {}
    try:
        for tid in sorted(map(int, os.listdir(f"/proc/{pid}/task"))):
            tracee.seize(tid, tracee.OPTION_TRACESYSGOOD)
            tracee.interrupt(tid)
            stop = tracee.wait(tid)
            due[tid] = stop.signal if stop.is_signal else 0
            threads.stops[tid] = stop
            threads[tid] = tracee.get_registers(tid)
        yield threads
    except InjectionInterrupted as interrupted:
        due[interrupted.tid] = interrupted.signal
        raise
    finally:
        for tid in threads:
            with suppress(TraceeGone):
                tracee.detach(tid, due[tid])


def ask_nothing(stubs: Injector, pid: int, tid: int, threads: Threads) -> None:
    done = stubs.script(tid, threads[tid], [Call(NR.GETPID)])
    assert done.results == (pid,)


def ask_for_output(stubs: Injector, pid: int, tid: int, threads: Threads) -> None:
    done = stubs.script(tid, threads[tid], [
        Call(NR.GETPID), Call(NR.PRCTL, (PR_GET_TID_ADDRESS, Scratch(64))), Call(NR.SIGALTSTACK, (0, Scratch(128)))])
    assert done.results == (pid, 0, 0)
    assert struct.unpack_from("<Q", done.scratch, 64) > (0,)


TABLE = CallTable([Call(NR.GETPID), Call(NR.PRCTL, (PR_GET_TID_ADDRESS, Scratch(64))), Call(NR.GETPPID)], 2,
                  lambda _: 128)


def go(detour: Detour | None) -> None:
    assert detour
    take([detour])
    assert detour.check()


def ask_everyone(stubs: Injector, pid: int, _tid: int, threads: Threads) -> None:
    with Room(pid, list(threads)) as room:
        group = ThreadGroup(list(threads), list(threads.stops.values()))
        assert not group.read(room)
        survey = Survey(group, TABLE)
        check_ways(group)
        maps = procfs.maps(pid)
        stubs.remove_leftover(pid, threads[pid], [(entry.start, entry.end, entry.permissions) for entry in maps
                                                  if not entry.path])
        area = Area(gap([(entry.start, entry.end) for entry in maps], survey.area_bytes + 8192) + 4096,
                    survey.area_bytes)
        go(stubs.mapping(group, area, survey.data_bytes))
        go(survey.fill(stubs.memory, area.start))
        survey.collect()
        match random.randrange(3):
            case 0:
                stubs.unmap_area(pid, threads[pid])
            case 1:
                go(stubs.unmapping(group))
                stubs.forget_area()
            case _:
                end(snapshot(stubs, pid, threads[pid]))
        for index in range(len(threads)):
            done = survey.result(index)
            assert done.results == (pid, 0, procfs.stat(pid).parent_pid)[:2 if index else 3]
            assert struct.unpack_from("<Q", done.scratch, 64) > (0,)


def snapshot(stubs: Injector, tid: int, original: Registers, *, child_of_target: bool = False) -> int:
    """Make a copy-on-write child, and return its pid."""
    return stubs.end_snapshot(stubs.begin_snapshot(tid, original, child_of_target=child_of_target))


def make_snapshot(stubs: Injector, pid: int, tid: int, threads: Threads) -> None:
    end(snapshot(stubs, tid, threads[tid]))


def make_own_child(stubs: Injector, pid: int, tid: int, threads: Threads) -> None:
    """A tracer that dies in here leaves a dead child to the target, so it is not among the variants that are killed."""
    child = snapshot(stubs, tid, threads[tid], child_of_target=True)
    end(child)
    assert stubs.script(tid, threads[tid], [Call(NR.WAIT4, (child, 0, WALL, 0))]).results == (child,)


def end(child: int) -> None:
    os.kill(child, signal.SIGKILL)
    stop = tracee.wait(child)
    assert stop.ended


VARIANTS: dict[str, Callable[[Injector, int, int, Threads], None]] = {
    "getpid": ask_nothing, "output": ask_for_output, "survey": ask_everyone, "snapshot": make_snapshot,
    "child": make_own_child}


def inject_once(pid: int, variant: str, chance: random.Random) -> bool:
    """Freeze, inject into some thread, let go; false if it has to be tried again."""
    try:
        with Memory(pid) as memory, frozen(pid) as threads:
            stubs = Injector(memory, [vdso(pid)])
            if any(stubs.inside(registers.rip) for registers in threads.values()):
                return False
            tid = chance.choice(sorted(threads))
            VARIANTS[variant](stubs, pid, tid, threads)
    except InjectionInterrupted:
        return False
    return True


def injector(pid: int, variant: str, seed: int, counters: mmap.mmap) -> NoReturn:
    try:
        chance = random.Random(seed)
        while True:
            at = INJECTIONS if inject_once(pid, variant, chance) else RETRIES
            counters[at:at + 8] = struct.pack("<Q", struct.unpack_from("<Q", counters, at)[0] + 1)
    except BaseException:  # noqa: BLE001  (a fork of the driver must not return into it)
        traceback.print_exc()
        os._exit(1)


def chaos(pid: int, variant: str, kills: int, seed: int) -> dict[str, int]:
    chance = random.Random(seed)
    counters = mmap.mmap(-1, mmap.PAGESIZE)
    sent = failed = 0
    longest_life = LONGEST_LIFE_SECONDS
    while kills > 0 or (not any(counters[INJECTIONS:INJECTIONS + 8]) and longest_life < LIFE_SECONDS_MAX):
        kills -= 1
        if kills < 0:  # on a machine that is so slow that none came to anything
            longest_life *= 2
        child = os.fork()
        if not child:
            injector(pid, variant, chance.getrandbits(32), counters)
        kill_at = time.monotonic() + chance.uniform(0.0002, longest_life)
        while (left := kill_at - time.monotonic()) > 0:
            time.sleep(min(left, chance.uniform(0, LONGEST_SILENCE_SECONDS)))
            os.kill(pid, signal.SIGRTMIN)
            sent += 1
        os.kill(child, signal.SIGKILL)
        failed += os.WIFEXITED(os.waitpid(child, 0)[1])
    injections, retries = struct.unpack_from("<2Q", counters)
    return {"injections": injections, "retries": retries, "sent": sent, "failed": failed}


if __name__ == "__main__":
    print(json.dumps(chaos(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
