"""Coverage-guided fuzzing of all that reads images: ``make fuzz``, or ``python -m tests.fuzz.codec CORPUS -runs=N``.

What is found joins ``corpus/``, which the tests replay; arguments are libFuzzer's.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["crd.image"]):
    from crd.image import generations, inspect, reader, self_checkpoint, verify, walk_early, walk_late  # noqa: F401
    from tests.fuzz.test_image_reader import holds, read_any, read_crd, read_self


def test_one(data: bytes) -> None:
    for read in (read_any, read_crd, read_self):
        holds(read, data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one)
    atheris.Fuzz()
