"""Durations and sizes as people write them: ``30s``, ``5min``, ``2GiB``."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

if TYPE_CHECKING:
    from collections.abc import Mapping

_SECONDS = {"ms": 0.001, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_BYTES = {"": 1, "B": 1, "K": 1 << 10, "KiB": 1 << 10, "M": 1 << 20, "MiB": 1 << 20, "G": 1 << 30, "GiB": 1 << 30}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_SECONDS_MAX = 36_500 * 86_400
"""A hundred years: a time so far from now, in either direction, is still one that ``datetime`` has."""
_BYTES_MAX = 1 << 60


def parse_seconds(text: Any) -> float:
    """Return seconds; a bare number is seconds.

    Raises:
        ValueError: it is no duration.
    """
    value = _parse(text, {**_SECONDS, "": 1}, "a duration such as 30s, 5min or 1h")
    if not 0 <= value <= _SECONDS_MAX:
        raise ValueError("a duration is from 0 to 36500d")
    return value


def parse_bytes(text: Any) -> int:
    """Return bytes; a bare number is bytes.

    Raises:
        ValueError: it is no size.
    """
    value = _parse(text, _BYTES, "a size such as 512MiB or 2GiB")
    if not 0 <= value <= _BYTES_MAX:
        raise ValueError("a size is from 0 to 1073741824GiB")
    return int(value)


def _parse(text: Any, units: Mapping[str, float], like: str) -> float:
    if isinstance(text, int | float) and not isinstance(text, bool):
        try:
            return float(text)
        except OverflowError:
            return math.inf
    match = _QUANTITY.fullmatch(text.strip()) if isinstance(text, str) else None
    if not match or match[2] not in units:
        raise ValueError(f"write {like}")
    return float(match[1]) * units[match[2]]


def format_seconds(seconds: float) -> str:
    """Write a duration as people do: the largest unit that is whole."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= length and seconds % length == 0:
            return f"{int(seconds // length)}{unit}"
    return f"{Decimal(repr(seconds)):f}s"


Seconds = Annotated[float, BeforeValidator(parse_seconds), PlainSerializer(format_seconds)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]
