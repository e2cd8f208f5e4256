"""Identifiers as people write them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from crd.errors import BadRequest
from crd.ids import (
    Crid,
    ImageRef,
    TargetName,
    parse_crid,
    parse_image_ref,
    parse_note,
    parse_tag,
    parse_target_name,
    parse_time,
)

if TYPE_CHECKING:
    from collections.abc import Callable

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def ref(text: str) -> ImageRef:
    return parse_image_ref(text, now=NOW)


def test_a_crid_alone_or_with_its_host() -> None:
    assert ref("42") == ImageRef(crid=Crid(42))
    assert ref("db1.example/7") == ImageRef(crid=Crid(7), host="db1.example")


@pytest.mark.parametrize(("text", "until"), [
    ("web@latest", None),
    ("web@10 min ago", NOW - timedelta(minutes=10)),
    ('web@"1 hour ago"', NOW - timedelta(hours=1)),
    ("web@90s ago", NOW - timedelta(seconds=90)),
    ("web@2 days ago", NOW - timedelta(days=2)),
    ("web@2026-11-23T10:00+00:00", datetime(2026, 11, 23, 10, 0, tzinfo=UTC)),
])
def test_the_newest_of_a_target(text: str, until: datetime | None) -> None:
    assert ref(text) == ImageRef(target=TargetName("web"), until=until)


def test_a_time_without_zone_is_local() -> None:
    local = datetime(2026, 11, 23, 10, 0).astimezone(UTC)
    assert ref("web@2026-11-23T10:00").until == local


def test_times_alone() -> None:
    assert parse_time("10 min ago", now=NOW) == NOW - timedelta(minutes=10)
    assert parse_time("2026-11-23T10:00+01:00", now=NOW) == datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
    with pytest.raises(BadRequest) as refused:
        parse_time("latest", now=NOW)
    assert "@" not in refused.value.hint


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "web", "/4", "a/b", "@latest", "web@", "web@soon",
                                  "web@99999999999999 days ago", "9" * 30, "4²", "web@2026-13-01", "../x@latest"])
def test_anything_else_is_refused_with_what_would_be_right(text: str) -> None:
    with pytest.raises(BadRequest) as refused:
        ref(text)
    assert refused.value.hint


@pytest.mark.parametrize("text", ["1", str(2**63 - 1)])
def test_crids(text: str) -> None:
    assert parse_crid(text) == int(text)


def test_a_crid_beyond_the_databases_integers_is_refused() -> None:
    with pytest.raises(BadRequest):
        parse_crid(str(2**63))


@pytest.mark.parametrize("text", ["42", "", "-a", "a b", "a/b", "a@b", "ä", "x" * 65, "a\n"])
def test_what_cannot_name_a_target(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_target_name(text)


def test_target_names() -> None:
    assert parse_target_name("web-1.example:8080_a") == "web-1.example:8080_a"


@pytest.mark.parametrize(("parse", "characters"), [(parse_tag, 128), (parse_note, 1000)])
def test_words_are_one_line_that_no_terminal_obeys(parse: Callable[[str], str], characters: int) -> None:
    for text in ("good", "before the upgrade", "über 日本", "x" * characters):
        assert parse(text) == text
    for text in ("", "x" * (characters + 1), " good", "good ", "a\nb", "\x1b[2J", "\x9b2J", "a\u202eb", "\udc80", "\0"):
        with pytest.raises(BadRequest):
            parse(text)
