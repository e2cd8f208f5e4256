"""Which images are kept, as people write it: ``last=24 within=2d daily=7 weekly=4``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

from crd.settings.units import format_seconds, parse_seconds

_COUNT_MAX = 1_000_000
_EXAMPLE = "write rules such as last=24 within=2d hourly=24 daily=7 weekly=4 monthly=12 yearly=3"


@dataclass(frozen=True, slots=True)
class Keep:
    """The rules of a target: an image that one of them wants is kept.  Without any rule, all are.

    Attributes:
        last: so many, the newest.
        within_seconds: those that are younger.
        hourly, daily, weekly, monthly, yearly: the newest one of each of the last so many of these periods that have
            any.
    """

    last: int = 0
    within_seconds: float = 0.0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    @property
    def everything(self) -> bool:
        """Whether there is no rule, so that nothing is forgotten."""
        return self == Keep()


_RULES = tuple(field.name.removesuffix("_seconds") for field in fields(Keep))


def parse_keep(text: Any) -> Keep:
    """Read rules; an empty text keeps everything.

    Raises:
        ValueError: it cannot be read.
    """
    if isinstance(text, Keep):
        return text
    if not isinstance(text, str):
        raise ValueError(_EXAMPLE)  # noqa: TRY004  pydantic takes ValueError
    values: dict[str, Any] = {}
    for word in text.replace(",", " ").split():
        name, _, amount = word.partition("=")
        if name not in _RULES:
            raise ValueError(f"there is no rule {word!r}; {_EXAMPLE}")
        if name in values or f"{name}_seconds" in values:
            raise ValueError(f"{name} is given twice")
        if name == "within":
            values["within_seconds"] = _positive(parse_seconds(amount), word)
        elif amount.isascii() and amount.isdigit() and len(amount) < 10 and int(amount) <= _COUNT_MAX:
            values[name] = _positive(int(amount), word)
        else:
            raise ValueError(f"{word!r} gives no number from 1 to {_COUNT_MAX}")
    return Keep(**values)


def _positive(amount: Any, word: str) -> Any:
    if amount <= 0:
        raise ValueError(f"{word!r} keeps nothing: leave the rule out")
    return amount


def format_keep(keep: Keep) -> str:
    """Write rules as ``parse_keep`` reads them."""
    within = f"within={format_seconds(keep.within_seconds).replace(' ', '')}" if keep.within_seconds else ""
    counts = {name: getattr(keep, name) for name in _RULES if name != "within"}
    return " ".join(filter(None, (f"last={keep.last}" if keep.last else "", within, *(
        f"{name}={count}" for name, count in counts.items() if count and name != "last"))))


KeepRules = Annotated[Keep, BeforeValidator(parse_keep), PlainSerializer(format_keep)]
