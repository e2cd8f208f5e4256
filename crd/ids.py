"""Identifiers that people and programs write: crids, target names, image references, and words about images.

An **image reference** names one image: ``42``, ``web@latest``, ``web@"10 min ago"``,
``web@2026-11-23T10:00`` or ``host/42``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NewType

from crd.errors import BadRequest

Crid = NewType("Crid", int)
"""Checkpoint identifier: a positive number, unique on its host for ever."""

TargetName = NewType("TargetName", str)

CRID_MAX = 2**63 - 1
_TARGET_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}")
_AGO = re.compile(r"(\d+)\s*(s|sec|seconds?|m|min|minutes?|h|hours?|d|days?)\s+ago")
_TAG_CHARACTERS = 128
_NOTE_CHARACTERS = 1000
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_crid(text: str) -> Crid:
    """Parse a crid.

    Raises:
        BadRequest: ``text`` is not a number from 1 to 2**63 - 1.
    """
    if text.isascii() and text.isdigit() and len(text) < 20 and 0 < int(text) <= CRID_MAX:
        return Crid(int(text))
    raise BadRequest(f"{text!r} is not a crid", hint="A crid is a positive number, as shown by crctl images.")


def parse_target_name(text: str) -> TargetName:
    """Check the name of a target: 1 to 64 letters, digits and ``_ . : -``, beginning with a letter or digit.

    A name of digits alone is refused, since an image reference would read it as a crid.

    Raises:
        BadRequest: it is not such a name.
    """
    if _TARGET_NAME.fullmatch(text) and not text.isdigit():
        return TargetName(text)
    raise BadRequest(f"{text!r} cannot name a target",
                     hint="Use up to 64 letters, digits and _ . : - and no digits alone.")


def parse_tag(text: str) -> str:
    """Check a tag: 1 to 128 printable characters, no space at either end.

    Raises:
        BadRequest: it is none.
    """
    return _checked_words(text, "tag", _TAG_CHARACTERS)


def parse_note(text: str) -> str:
    """Check a note: 1 to 1000 printable characters, so that it is one line, no space at either end.

    Raises:
        BadRequest: it is none.
    """
    return _checked_words(text, "note", _NOTE_CHARACTERS)


def _checked_words(text: str, what: str, characters: int) -> str:
    if not 0 < len(text) <= characters:
        raise BadRequest(f"a {what} of {len(text)} characters", hint=f"Use 1 to {characters}.")
    if bad := next((letter for letter in text if not letter.isprintable()), None):
        raise BadRequest(f"a {what} cannot hold the character U+{ord(bad):04X}",
                         hint="Write one line of printable characters.")
    if text != text.strip():
        raise BadRequest(f"a {what} neither begins nor ends with a space")
    return text


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Which image is meant: by crid, or the newest of a target not after ``until``.

    Attributes:
        crid: the image itself, or None.
        host: the host the image must be from, or "" for this one.
        target: name of the target, if no crid is given.
        until: the newest image taken at or before this time; None means the latest.
    """

    crid: Crid | None = None
    host: str = ""
    target: TargetName | None = None
    until: datetime | None = None


def parse_image_ref(text: str, *, now: datetime) -> ImageRef:
    """Parse an image reference; times without zone are local, as people write them.

    Raises:
        BadRequest: the reference cannot be read.
    """
    hint = 'Write a crid (42), TARGET@latest, TARGET@"10 min ago", TARGET@2026-11-23T10:00 or HOST/42.'
    target, at, when = text.partition("@")
    if at:
        return ImageRef(target=parse_target_name(target), until=_parse_when(when.strip().strip('"'), now, hint))
    host, slash, number = text.rpartition("/")
    if slash and not host:
        raise BadRequest(f"{text!r} names no image", hint=hint)
    try:
        return ImageRef(crid=parse_crid(number), host=host)
    except BadRequest as error:
        raise BadRequest(f"{text!r} names no image", hint=hint) from error


def parse_time(text: str, *, now: datetime) -> datetime:
    """Parse a time, absolute (``2026-11-23T10:00``) or relative (``10 min ago``); without zone it is local.

    Raises:
        BadRequest: it cannot be read.
    """
    return _parse_time(text, now, "Write a time (2026-11-23T10:00) or how long ago (10 min ago).")


def _parse_when(when: str, now: datetime, hint: str) -> datetime | None:
    return None if when == "latest" else _parse_time(when, now, hint)


def _parse_time(when: str, now: datetime, hint: str) -> datetime:
    if ago := _AGO.fullmatch(when):
        try:
            return now - timedelta(seconds=int(ago[1]) * _UNIT_SECONDS[ago[2][0]])
        except OverflowError:
            raise BadRequest(f"{when!r} is before the beginning of time", hint=hint) from None
    try:
        return datetime.fromisoformat(when).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise BadRequest(f"{when!r} is not a time", hint=hint) from error
