"""Sizes, durations and times as people read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

_SIZES = ("KiB", "MiB", "GiB", "TiB", "PiB")
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def size(n_bytes: int) -> str:
    """Return a number of bytes: ``512 B``, ``1.5 KiB``, ``12 MiB``."""
    if n_bytes < 1024:
        return f"{n_bytes} B"
    amount, unit = n_bytes / 1024, 0
    while amount >= 1023.5 and unit < len(_SIZES) - 1:
        amount, unit = amount / 1024, unit + 1
    return f"{_figure(amount)} {_SIZES[unit]}"


def duration(seconds: float) -> str:
    """Return a duration: ``850 µs``, ``12 ms``, ``1.5 s``, ``2 min 5 s``, ``3 h 4 min``, ``2 d 1 h``."""
    if seconds < 0.9995e-3:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 0.9995:
        return f"{_figure(seconds * 1e3)} ms"
    if seconds < 59.95:
        return f"{_figure(seconds)} s"
    whole = round(seconds)
    for large, small, name, part in ((_DAY, _HOUR, "d", "h"), (_HOUR, _MINUTE, "h", "min"), (_MINUTE, 1, "min", "s")):
        if whole >= large:
            rest = whole % large // small
            return f"{whole // large} {name}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


def time(text: str | None) -> str | None:
    """Return an RFC 3339 time as local time, to the second; what is no time stays as it is."""
    moment = _parsed(text)
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S") if moment else text


def age(text: str | None, *, now: datetime | None = None) -> str | None:
    """Return how far off an RFC 3339 time is: ``3 min ago``, ``in 20 s``."""
    if not (moment := _parsed(text)):
        return text
    away = (moment - (now or datetime.now(UTC))) / timedelta(seconds=1)
    amount = next((f"{int(abs(away) // unit)} {name}" for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min"))
                   if abs(away) >= unit), f"{int(abs(away))} s")
    return f"in {amount}" if away > 0 else f"{amount} ago"


def _parsed(text: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text or "")
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except ValueError:
        return None


def _figure(amount: float) -> str:
    """Return a number below 1024 with the digits that matter."""
    return f"{amount:.1f}".removesuffix(".0") if amount < 99.95 else f"{amount:.0f}"
