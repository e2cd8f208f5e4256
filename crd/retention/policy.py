"""From rules to decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime, tzinfo

    from crd.settings.keep import Keep

PINNED = "pinned"
DAMAGED = "damaged: left for the operator to forget"
EVERYTHING = "no rule: everything is kept"
FUTURE = "taken in the future, as the clock says now"
UNWANTED = "no rule wants it"


class Candidate(Protocol):
    """An image of the target that is decided about."""

    @property
    def crid(self) -> int:
        """Its identifier; a larger one was taken later, whatever the clock said."""

    @property
    def taken_at(self) -> datetime:
        """Aware."""

    @property
    def pinned(self) -> bool:
        """Whether it is to stay, whatever the rules say."""

    @property
    def damaged(self) -> bool:
        """Whether it is known not to be restartable: it stands in for no good one."""


class Decision(NamedTuple):
    """What becomes of an image; ``reasons`` are all that there are to keep it, or why there is none."""

    crid: int
    keep: bool
    reasons: tuple[str, ...]


_PERIODS: dict[str, Callable[[datetime], tuple[object, ...]]] = {
    # An hour that the clock goes through twice is two hours, told apart by its distance from UTC.
    "hourly": lambda at: (at.year, at.month, at.day, at.hour, at.utcoffset()),
    "daily": lambda at: (at.year, at.month, at.day),
    "weekly": lambda at: tuple(at.isocalendar()[:2]),
    "monthly": lambda at: (at.year, at.month),
    "yearly": lambda at: (at.year,),
}


def decide(images: Iterable[Candidate], keep: Keep, *, min_images: int, now: datetime,
           zone: tzinfo | None) -> list[Decision]:
    """Decide about the images of one target.

    A rule for periods keeps the newest image of each of the last N periods that have one, so a gap costs nothing.  The
    newest ``min_images`` that are not damaged are kept whatever the rules say.  Damaged images are left alone: they may
    be all that is left, and they count for nothing.  Images from the future are kept and fill no period, so that a
    clock that was wrong for a while does not make today's images unwanted.

    Args:
        images: of the target; in any order.
        keep: the rules.
        min_images: at least 1.
        now: aware.
        zone: in which days begin; None: this machine's.

    Returns:
        A decision for each image, the newest (largest crid) first.
    """
    newest_first = sorted(images, key=lambda image: image.crid, reverse=True)
    reasons = {image.crid: _whatever_the_rules(image, keep) for image in newest_first}
    good = [image for image in newest_first if not image.damaged]
    for place, image in enumerate(good[:keep.last], 1):
        reasons[image.crid].append(f"last {place} of {keep.last}")
    for image in good:
        if image.taken_at > now:
            reasons[image.crid].append(FUTURE)
        elif keep.within_seconds and (now - image.taken_at).total_seconds() < keep.within_seconds:
            reasons[image.crid].append("within")
    past = sorted((image for image in good if image.taken_at <= now), reverse=True,
                  key=lambda image: (image.taken_at, image.crid))
    for name in _PERIODS:
        _keep_periods(past, name, getattr(keep, name), zone, reasons)
    for place, image in enumerate(good[:min_images], 1):
        if not reasons[image.crid]:
            reasons[image.crid].append(f"newest {place} of at least {min_images}")
    return [Decision(image.crid, bool(found), tuple(found) or (UNWANTED,))
            for image in newest_first for found in (reasons[image.crid],)]


def _whatever_the_rules(image: Candidate, keep: Keep) -> list[str]:
    reasons = [PINNED] if image.pinned else []
    if image.damaged:
        reasons.append(DAMAGED)
    elif keep.everything:
        reasons.append(EVERYTHING)
    return reasons


def _keep_periods(past: Sequence[Candidate], name: str, wanted: int, zone: tzinfo | None,
                  reasons: dict[int, list[str]]) -> None:
    """Keep the first image of each period, the newest being first, until enough periods had one."""
    seen: set[tuple[object, ...]] = set()
    for image in past:
        if len(seen) == wanted:
            return
        period = _PERIODS[name](image.taken_at.astimezone(zone))
        if period not in seen:
            seen.add(period)
            reasons[image.crid].append(f"{name} {len(seen)} of {wanted}")
