"""Numbers of pages, many at once: the place of a pack in a list << 32, and the page's in the pack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crd.native.check import call
from crd.native.ffi import ffi, lib
from crd.native.pages import HASH_BYTES

if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence


def places_used(numbers: array[int], n_places: int) -> list[int]:
    """Return the places that numbers have, in ascending order.

    Raises:
        NativeError: ERANGE: one is not below ``n_places``.
    """
    used = bytearray(n_places)
    call(lib.crd_places_used, _words(numbers), len(numbers), ffi.from_buffer(used), n_places)
    return [place for place in range(n_places) if used[place]]


def replace_places(numbers: array[int], places: Sequence[int]) -> None:
    """Give each number the place that ``places`` has for its own; raises as ``places_used``."""
    call(lib.crd_places_replace, _words(numbers), len(numbers), ffi.new("uint32_t[]", list(places)), len(places))


def to_differences(numbers: array[int]) -> None:
    """Make of each number the difference, less one, from the one before it (modulo 2^64)."""
    lib.crd_numbers_to_differences(_words(numbers), len(numbers))


def from_differences(numbers: array[int]) -> None:
    """Undo ``to_differences``."""
    lib.crd_numbers_from_differences(_words(numbers), len(numbers))


def hashes_of(numbers: array[int], packs: Sequence[bytes]) -> bytearray:
    """Return the hashes of pages.

    Args:
        numbers: of the pages.
        packs: by place, the hashes of a pack's pages.

    Raises:
        NativeError: ERANGE: there is no such page.
    """
    hashes = bytearray(len(numbers) * HASH_BYTES)
    buffers = [ffi.from_buffer(pack) for pack in packs]
    call(lib.crd_numbers_hashes, _words(numbers), len(numbers), ffi.new("unsigned char *[]", buffers),
         ffi.new("size_t[]", [len(pack) // HASH_BYTES for pack in packs]), len(packs), ffi.from_buffer(hashes))
    return hashes


def _words(numbers: array[int]) -> Any:
    return ffi.from_buffer("uint64_t[]", numbers)
