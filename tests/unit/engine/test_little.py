"""Little memory, and room for it."""

from __future__ import annotations

import pytest

from crd.engine.userspace.mem import little
from crd.engine.userspace.mem.shared import Reserve

STATUS = "Name:\tRssAnon: 1 kB\nVmRSS:\t     900 kB\nRssAnon:\t{:8} kB\nRssFile:\t 500 kB\nVmSwap:\t{:8} kB\n"


@pytest.mark.parametrize(("status", "own"), [
    (STATUS.format(100, 4), 104 << 10),
    (STATUS.format(1024, 0), 1 << 20),
    (STATUS.format(1020, 8), -1),
    ("Name:\tkthreadd\n", -1),
    ("", -1),
])
def test_own_bytes(status: str, own: int) -> None:
    assert little.own_bytes(status) == own


def test_room_for_little() -> None:
    assert little.reserve([-1, -1], []).take(0).nbytes == 0
    room = little.reserve([4096, -1, 8192], [])
    first, second = room.take(4096), room.take(8192)
    first[:], second[:] = bytes([1]) * 4096, bytes([2]) * 8192
    assert (set(first), set(second)) == ({1}, {2})


def test_a_reserve_that_is_used_up_gives_other_memory() -> None:
    reserve = Reserve(8192)
    first, other, last = reserve.take(4096), reserve.take(12288), reserve.take(4096)
    assert [part.nbytes for part in (first, other, last)] == [4096, 12288, 4096]
    assert first.obj is last.obj is not other.obj
