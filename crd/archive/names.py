"""The names of objects in a store."""

from __future__ import annotations

import re

_OBJECT = re.compile(r"([0-7][0-9a-f]{15})\.(image|pack|token)")


def image_key(crid: int) -> str:
    """Return the key of an image."""
    return f"{crid:016x}.image"


def pack_key(pack: int) -> str:
    """Return the key of a pack."""
    return f"{pack:016x}.pack"


def token_key(token: int) -> str:
    """Return the key of the object that says who wrote there last (``crd.archive.needs``)."""
    return f"{token:016x}.token"


def numbered(keys: dict[str, int], kind: str) -> dict[int, int]:
    """Return those objects of a store that are of a kind, "image", "pack" or "token": number and bytes of each."""
    found = ((_OBJECT.fullmatch(key), size) for key, size in keys.items())
    return {int(match[1], 16): size for match, size in found if match and match[2] == kind}


def needed_first(key: str) -> tuple[bool, str]:
    """Return what sorts keys so that images come after all that they need."""
    return ".image" in key, key
