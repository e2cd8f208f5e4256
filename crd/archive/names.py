"""The names of objects in a store."""

from __future__ import annotations

import re

_OBJECT = re.compile(r"([0-9a-f]{16})\.(image|pack)")


def image_key(crid: int) -> str:
    """Return the key of an image."""
    return f"{crid:016x}.image"


def pack_key(pack: int) -> str:
    """Return the key of a pack."""
    return f"{pack:016x}.pack"


def numbered(keys: dict[str, int], kind: str) -> dict[int, int]:
    """Return those objects of a store that are of a kind, "image" or "pack": number and bytes of each."""
    found = ((_OBJECT.fullmatch(key), size) for key, size in keys.items())
    return {int(match[1], 16): size for match, size in found if match and match[2] == kind}


def needed_first(key: str) -> tuple[bool, str]:
    """Return what sorts keys so that images come after all that they need."""
    return ".image" in key, key
