"""Huge pages of hugetlbfs, of which the machine keeps some ready for the test."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.direct import checkpoint, crd, killed_and_restarted_from_both, restart
from tests.support.victims import Victim

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.root

POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
PAGES = 10
"""Three private ones of each of two processes, two that they share, and some to spare."""


@contextmanager
def reserved(pages: int) -> Iterator[None]:
    """Have the machine keep so many pages more; one test at a time does."""
    with (POOL / "nr_hugepages").open("r+") as pool:
        fcntl.flock(pool, fcntl.LOCK_EX)
        before = int((POOL / "nr_hugepages").read_text())
        try:
            (POOL / "nr_hugepages").write_text(str(before + pages))
            if int((POOL / "nr_hugepages").read_text()) < before + pages:
                pytest.skip(f"this machine has no {pages} huge pages to spare")
            yield
        finally:
            (POOL / "nr_hugepages").write_text(str(before))


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    if not os.access(POOL, os.R_OK):
        pytest.skip("this kernel has no huge pages of 2 MiB")
    with reserved(PAGES), Victim("huge", tmp_path) as running:
        yield running


def test_left_running(victim: Victim, tmp_path: Path) -> None:
    for number in range(3):
        done = crd("checkpoint", str(victim.pid), "-o", tmp_path / f"{number}.image", "--json", home=tmp_path)
        assert done.returncode == 0, done.stderr
        taken = json.loads(done.stdout)
        assert taken["method"] == "copy"
        assert "huge pages" in taken["method_reason"]
        victim.assert_unharmed()
    victim.verify()


@pytest.mark.parametrize("words", [(), ("--pidns",)], ids=["", "pidns"])
def test_killed_and_the_older_image_restarted(victim: Victim, words: tuple[str, ...], tmp_path: Path) -> None:
    killed_and_restarted_from_both(victim, tmp_path, *words)
    areas = Path(f"/proc/{victim.pid}/smaps").read_text()
    assert areas.count("KernelPageSize:     2048 kB") == 3
    victim.verify()


def test_too_few_of_them_are_found_before_anything_is_made(victim: Victim, tmp_path: Path) -> None:
    checkpoint(victim, tmp_path / "image")
    victim.kill_tree()
    (POOL / "nr_hugepages").write_text(str(int((POOL / "nr_hugepages").read_text()) - PAGES + 1))
    plan = restart(tmp_path / "image", "--plan")
    assert plan.returncode == 13
    assert "8 huge pages of 2 MiB are needed" in plan.stdout + plan.stderr
    assert "vm.nr_hugepages=" in plan.stdout + plan.stderr
    assert restart(tmp_path / "image").returncode == 13
    assert not victim.is_there()
