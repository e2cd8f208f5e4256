"""The counter of crids: never the same twice, whatever happens to its file."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from crd.engine.crid import CridCounter
from crd.errors import EngineError


def take(path: Path) -> list[int]:
    return [CridCounter(path).next() for _ in range(20)]


def test_it_begins_with_one_and_goes_on(tmp_path: Path) -> None:
    counter = CridCounter(tmp_path / "state" / "crid")
    assert [counter.next() for _ in range(3)] == [1, 2, 3]
    assert CridCounter(counter.path).next() == 4
    assert counter.path.stat().st_mode & 0o777 == 0o600


def test_many_processes_never_get_the_same(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4) as pool:
        taken = [crid for crids in pool.map(take, [tmp_path / "crid"] * 4) for crid in crids]
    assert sorted(taken) == list(range(1, 81))


def test_it_is_raised_but_never_lowered(tmp_path: Path) -> None:
    counter = CridCounter(tmp_path / "crid")
    counter.raise_to(41)
    counter.raise_to(7)
    assert counter.next() == 42


@pytest.mark.parametrize("rubbish", [b"", b"many", b"-1", b"9" * 40, b"1\n2", bytes(range(64))])
def test_rubbish_is_refused_and_left(tmp_path: Path, rubbish: bytes) -> None:
    (tmp_path / "crid").write_bytes(rubbish)
    with pytest.raises(EngineError) as refused:
        CridCounter(tmp_path / "crid").next()
    assert refused.value.hint
    assert (tmp_path / "crid").read_bytes() == rubbish


def test_a_counter_that_cannot_be_made_is_an_error_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError):
        CridCounter(tmp_path / "file" / "crid").check()
