"""What a busy victim (tests/victims/rwhog.c) says of itself: the longest time it stood still, and how far it came."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.support.victims import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.victims import Victim


class Mark(NamedTuple):
    """Since the last mark: the longest gap, in ns.  Since its beginning: how often it went round."""

    longest_gap_ns: int
    rounds: int


def mark(victim: Victim) -> Mark:
    """Ask a victim, and have it measure gaps anew."""
    victim.file("gap").unlink(missing_ok=True)
    victim.file("mark").touch()
    until("gap", lambda: victim.file("gap").exists() and not victim.file("mark").exists())
    return Mark(*map(int, victim.file("gap").read_text().split()))


def longest_gap_ms(victim: Victim, during: Callable[[], object]) -> float:
    """Return the longest time that the victim was not allowed to run, as it saw it itself."""
    mark(victim)
    during()
    return mark(victim).longest_gap_ns / 1e6
