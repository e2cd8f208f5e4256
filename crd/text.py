"""Text of others, as names of processes and files: hostile until it is escaped."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return text that cannot command a terminal, and that JSON can carry: what is not printable is escaped."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
