"""Hostile images: whatever the bytes are, the answer is an image or an ImageError that says where, in bounded memory.

The mutations are random but seeded, so a failure repeats; ``CRD_FUZZ_ROUNDS`` multiplies them.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import random
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.errors import ImageError
from crd.image.framing import PAYLOAD_BYTES_MAX
from crd.image.inspect import inspect
from crd.image.reader import ImageReader
from crd.image.self_checkpoint import SelfCheckpoint
from crd.image.verify import verified
from tests.support.builders import make_image
from tests.support.linux_cr import IMAGES, WRITERS, GenB
from tests.unit.image.test_self_checkpoint import EXAMPLE

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = int(os.environ.get("CRD_FUZZ_ROUNDS", "1"))
GOLDEN = Path(__file__).parents[1] / "golden" / "images"
MEMORY_BYTES_MAX = 12 << 20
IMAGE = make_image()
INTERESTING = [0, 1, 0x7F, 0x80, 0xFF]


def read_crd(image: bytes) -> None:
    for _ in verified(ImageReader(io.BytesIO(image))):
        pass


def read_self(image: bytes) -> None:
    SelfCheckpoint.read(io.BytesIO(image))


def read_any(image: bytes) -> None:
    json.dumps(inspect(io.BytesIO(image)).to_json())


def holds(read, image: bytes) -> None:
    """Read: an ImageError must lie inside the image and know its errno or kind; anything else escapes and fails."""
    try:
        read(image)
    except ImageError as error:
        assert 0 <= error.offset <= len(image)  # noqa: PT017  # no error is right too


def mutated(image: bytes, rng: random.Random) -> bytes:
    data = bytearray(image)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        at = rng.randrange(len(data))
        match rng.randrange(6):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                data[at] = rng.choice(INTERESTING)
            case 2:
                width = rng.choice([2, 4, 8])
                data[at:at + width] = rng.choice([0, 1, 2**(8 * width) - 1, 2**(8 * width - 1), rng.randrange(300)]
                                                 ).to_bytes(width, "little")
            case 3:
                del data[at:at + rng.randrange(1, 64)]
            case 4:
                start = rng.randrange(len(data))
                data[at:at] = data[start:start + rng.randrange(1, 400)]
            case _:
                data = data[:at]
        if not data:
            break
    return bytes(data)


@pytest.mark.parametrize("read", [read_self, read_any])
def test_every_byte_of_the_smallest_image_changed(read):
    for offset in range(len(EXAMPLE)):
        for value in (*INTERESTING, EXAMPLE[offset] ^ 1, EXAMPLE[offset] ^ 0x80):
            holds(read, EXAMPLE[:offset] + bytes([value]) + EXAMPLE[offset + 1:])


def worth_changing(image: bytes) -> Iterator[int]:
    """Yield where a changed byte may mean something else; of many zeros in a row, which are content, every 61st."""
    at = 0
    for value, equal in itertools.groupby(image):
        n_bytes = len([*equal])
        yield from range(at, at + n_bytes, 1 if value or n_bytes < 64 else 61)
        at += n_bytes


def test_every_small_byte_of_a_crd_image_changed():
    """Every byte in front of the memory, and around the frames behind it."""
    memory = IMAGE.index(bytes([0xAB]) * 64)
    for offset in worth_changing(IMAGE[:memory]):
        holds(read_crd, IMAGE[:offset] + bytes([IMAGE[offset] ^ 0xFF]) + IMAGE[offset + 1:])


@pytest.mark.parametrize("read", [read_crd, read_any])
def test_every_prefix_of_a_crd_image(read):
    for n_bytes in (*range(1200), *range(1200, len(IMAGE), 61)):
        holds(read, IMAGE[:n_bytes])


@pytest.mark.parametrize("read", [read_crd, read_self, read_any])
def test_random_bytes(read):
    rng = random.Random(1)
    fronts = [b"", IMAGE[:16], IMAGE[:48], IMAGE[:267], IMAGE[:283], EXAMPLE[:16], EXAMPLE[:267], GenB(">").head()]
    for _ in range(400 * ROUNDS):
        holds(read, rng.choice(fronts) + rng.randbytes(rng.randrange(600)))


SEEDS = {
    "crd": IMAGE,
    **{name: IMAGES[f"{name}-{order}"] for name, order in zip(WRITERS, itertools.cycle(("big", "little")))},
    "gen-B-short": GenB("<", "HH").image(), "gen-B-wide": GenB(">").image(layout="wide"),
    **{name: (GOLDEN / f"{name}.img").read_bytes()
       for name in ("v13-self-full", "v13-ext-tree2", "v16p06-self-tlsfpu")},
}


@pytest.mark.parametrize("name", SEEDS)
def test_mutations(name):
    rng = random.Random(name)
    for _ in range(300 * ROUNDS):
        image = mutated(SEEDS[name], rng)
        holds(read_any, image)
        holds(read_crd, image)


def test_memory_is_bounded_whatever_the_image_claims():
    rng = random.Random(3)
    big = gzip.decompress((GOLDEN / "v13-ext-tree300.img.gz").read_bytes())
    images = [mutated(seed, rng) for seed in SEEDS.values() for _ in range(20)]
    images += [b"\x01\0\0\0\x28\0\0\0" + IMAGE[8:40] + bytes(4096), IMAGE[:267] + b"\xff" * 64]
    tracemalloc.start()
    try:
        for image in [*images, big]:
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            holds(read_any, image)
            holds(read_crd, image)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < MEMORY_BYTES_MAX
    finally:
        tracemalloc.stop()
    assert PAYLOAD_BYTES_MAX < MEMORY_BYTES_MAX
