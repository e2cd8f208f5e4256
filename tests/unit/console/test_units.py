from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from crd.console import units

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(("n_bytes", "text"), [
    (0, "0 B"), (1, "1 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (102_400, "100 KiB"),
    (1_048_575, "1 MiB"), (1_048_576, "1 MiB"), (12_582_912, "12 MiB"), (3 * 2**30, "3 GiB"), (2**63, "8192 PiB")])
def test_sizes(n_bytes: int, text: str) -> None:
    assert units.size(n_bytes) == text


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "0 µs"), (0.00085, "850 µs"), (0.0009999, "1 ms"), (0.0021, "2.1 ms"), (0.25, "250 ms"), (0.9996, "1 s"),
    (1.5, "1.5 s"), (59.9, "59.9 s"), (59.99, "1 min"), (125, "2 min 5 s"), (3600, "1 h"), (11_040, "3 h 4 min"),
    (86_400, "1 d"), (180_000, "2 d 2 h")])
def test_durations(seconds: float, text: str) -> None:
    assert units.duration(seconds) == text


@pytest.mark.parametrize(("away", "text"), [
    (timedelta(0), "0 s ago"), (timedelta(seconds=-59.9), "59 s ago"), (timedelta(minutes=-3), "3 min ago"),
    (timedelta(hours=-47), "1 d ago"), (timedelta(hours=-5), "5 h ago"), (timedelta(seconds=20), "in 20 s"),
    (timedelta(days=3), "in 3 d")])
def test_ages(away: timedelta, text: str) -> None:
    assert units.age((NOW + away).isoformat(), now=NOW) == text


def test_times_are_local() -> None:
    assert units.time("2026-11-23T12:00:00.9+00:00") == NOW.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    assert units.time("2026-11-23T12:00:00") == units.time("2026-11-23T12:00:00Z")


@pytest.mark.parametrize("text", [None, "", "soon"])
def test_what_is_no_time_stays(text: str | None) -> None:
    assert units.time(text) == text
    assert units.age(text) == text
