"""Text of others on a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return text that cannot command the terminal: what is not printable is escaped."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
