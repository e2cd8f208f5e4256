"""Numbers of pages, many at once: the place of a pack in a list << 32, and the page's in the pack."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from crd.native.check import call
from crd.native.ffi import ffi, lib

if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence


def pages_by_place(numbers: array[int], n_places: int) -> list[int]:
    """Return how many pages each place has.

    Raises:
        NativeError: ERANGE: a place is not below ``n_places``.
    """
    counts = ffi.new("uint64_t[]", n_places)
    call(lib.crd_places_count, _words(numbers), len(numbers), counts, n_places)
    return list(counts)


def replace_places(numbers: array[int], places: Sequence[int]) -> None:
    """Give each number the place that ``places`` has for its own; raises as ``pages_by_place``."""
    call(lib.crd_places_replace, _words(numbers), len(numbers), ffi.new("uint32_t[]", list(places)), len(places))


def to_differences(numbers: array[int]) -> None:
    """Make of each number the difference, less one, from the one before it (modulo 2^64)."""
    lib.crd_numbers_to_differences(_words(numbers), len(numbers))


def from_differences(numbers: array[int]) -> None:
    """Undo ``to_differences``."""
    lib.crd_numbers_from_differences(_words(numbers), len(numbers))


def _words(numbers: array[int]) -> Any:
    return ffi.from_buffer("uint64_t[]", numbers)
