"""The vdso (vdso(7)): an ELF image that the kernel maps into every process, the same in all of a boot."""

from __future__ import annotations

from hashlib import blake2b


def without_padding(area: bytes) -> bytes:
    """Return the ELF image in an area; what lies behind its section headers is padding, or a stub of crd."""
    headers = int.from_bytes(area[40:48], "little")
    size, count = int.from_bytes(area[58:60], "little"), int.from_bytes(area[60:62], "little")
    return area[:headers + size * count]


def digest(area: bytes) -> bytes:
    """Return the digest that PROFILE has of it."""
    return blake2b(without_padding(area), digest_size=32).digest()
