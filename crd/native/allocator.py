"""How the C library gives out memory: mallopt(3)."""

from __future__ import annotations

from crd.native.ffi import lib

_M_ARENA_MAX = -8


def limit_arenas(n: int) -> None:
    """Have all threads share so many arenas of memory, each of which keeps what it once had; before there are threads.

    glibc makes eight for each processor.
    """
    lib.mallopt(_M_ARENA_MAX, n)
