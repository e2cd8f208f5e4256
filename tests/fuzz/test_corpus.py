"""What ``make fuzz`` has kept and found, replayed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import frames
from tests.fuzz.targets import TARGETS
from tests.support.linux_cr import IMAGES

CORPUS = Path(__file__).parent / "corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_what_fuzzing_has_reached(name):
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs
    for path in inputs:
        TARGETS[name](path.read_bytes())


def test_nothing_else_is_kept_and_it_stays_small():
    assert {path.name for path in CORPUS.iterdir()} == TARGETS.keys()
    sizes = [path.stat().st_size for path in CORPUS.glob("*/*")]
    assert len(sizes) < 1000
    assert sum(sizes) < 1 << 20


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_mutations_keep_the_framing(image):
    framing = frames.framing_of(image)
    records, rest = framing.split(image)
    assert len(records) >= 4
    assert framing.join(records, rest) == image
    for seed in range(0, 4000, 37):
        changed, _ = framing.split(frames.mutated(image, framing, seed, lambda data, _: data[::-1], 1 << 16))
        assert len(changed) >= len(records) - 1 or seed % 11 > 7
