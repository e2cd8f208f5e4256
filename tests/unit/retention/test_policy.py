"""What rules mean: tables of images with what becomes of each, and the laws that hold for all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crd.retention.policy import Decision, decide
from crd.settings.keep import Keep, format_keep, parse_keep

TABLES = sorted((Path(__file__).parents[2] / "golden" / "retention").glob("*.txt"))


class Taken(NamedTuple):
    crid: int
    taken_at: datetime
    pinned: bool = False
    damaged: bool = False


NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_tables(path: Path) -> None:
    settings: dict[str, str] = {}
    candidates, expected = [], []
    for line in path.read_text().splitlines():
        if line.startswith("#") or not line:
            continue
        if not line[0].isdigit():
            name, _, settings[name] = line.partition(" ")
            continue
        given_, _, becomes = line.partition(" -> ")
        crid, taken_at, *marks = given_.split()
        candidates.append(Taken(crid=int(crid), taken_at=datetime.fromisoformat(taken_at),
                                pinned="pinned" in str(marks), damaged="damaged" in str(marks)))
        verdict, _, reasons = becomes.partition(": ")
        assert verdict in {"keep", "forget"}
        expected.append(Decision(int(crid), verdict == "keep", tuple(reasons.split(" + "))))
    decided = decide(candidates, parse_keep(settings["keep"]), min_images=int(settings.get("min", 1)),
                     now=datetime.fromisoformat(settings["now"]), zone=ZoneInfo(settings["zone"]))
    assert decided[::-1] == expected
    assert len(expected) > 1


def test_there_are_tables() -> None:
    assert len(TABLES) > 10


COUNTS = {name: st.integers(0, 4) for name in ("last", "hourly", "daily", "weekly", "monthly", "yearly")}
KEEPS = st.builds(Keep, **COUNTS, within_seconds=st.sampled_from([0.0, 3600.0, 1e6, 1e9]))
IMAGES = st.lists(st.builds(
    lambda seconds, pinned, damaged: (NOW - timedelta(seconds=seconds), pinned, damaged),
    st.one_of(st.integers(-10**5, 10**5), st.integers(-10**8, 10**8)), st.booleans(), st.booleans()),
    max_size=30).map(lambda drawn: [Taken(crid=crid, taken_at=taken_at, pinned=pinned, damaged=damaged)
                                    for crid, (taken_at, pinned, damaged) in enumerate(drawn, 1)])


def kept(images: list[Taken], keep: Keep, min_images: int = 1) -> set[int]:
    decided = decide(images, keep, min_images=min_images, now=NOW, zone=ZoneInfo("Europe/Berlin"))
    assert sorted(decision.crid for decision in decided) == sorted(image.crid for image in images)
    assert all(decision.reasons for decision in decided)
    return {decision.crid for decision in decided if decision.keep}


@given(images=IMAGES, keep=KEEPS, min_images=st.integers(1, 5))
def test_the_last_good_images_pins_and_damage_stay(images: list[Taken], keep: Keep, min_images: int) -> None:
    stay = kept(images, keep, min_images)
    good = [image.crid for image in images if not image.damaged]
    assert set(good[-min_images:]) <= stay
    assert {image.crid for image in images if image.pinned or image.damaged} <= stay


@given(images=IMAGES, keep=KEEPS, min_images=st.integers(1, 5))
def test_applying_twice_changes_nothing(images: list[Taken], keep: Keep, min_images: int) -> None:
    stay = kept(images, keep, min_images)
    assert kept([image for image in images if image.crid in stay], keep, min_images) == stay


@given(images=IMAGES, keep=KEEPS.filter(lambda keep: not keep.everything), more=KEEPS)
def test_more_rules_never_forget_more(images: list[Taken], keep: Keep, more: Keep) -> None:
    both = Keep(**{name: max(getattr(keep, name), getattr(more, name)) for name in (*COUNTS, "within_seconds")})
    assert kept(images, keep) <= kept(images, both)


@given(images=IMAGES, keep=KEEPS, data=st.data())
def test_the_order_in_which_images_come_does_not_matter(images: list[Taken], keep: Keep,
                                                        data: st.DataObject) -> None:
    assert kept(images, keep) == kept(data.draw(st.permutations(images)), keep)


@given(images=IMAGES)
def test_without_a_rule_nothing_is_forgotten(images: list[Taken]) -> None:
    assert kept(images, Keep()) == {image.crid for image in images}


@given(keep=KEEPS)
def test_rules_are_read_as_they_are_written(keep: Keep) -> None:
    assert parse_keep(format_keep(keep)) == keep


@pytest.mark.parametrize(("text", "says"), [
    ("last", "no number"), ("last=x", "no number"), ("last=0", "leave the rule out"), ("last=-1", "no number"),
    ("last=1 last=2", "twice"), ("within=1h,within=2h", "twice"), ("within=soon", "a duration"), ("fortnightly=3",
    "there is no rule"), ("last=99999999", "no number"), ("last=٣", "no number"), (7, "write rules")])
def test_rules_that_cannot_be_read(text: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_keep(text)
