"""Fuzzes one target, guided by coverage: ``python -m tests.fuzz.codec TARGET CORPUS -runs=N``.

Arguments behind the target are libFuzzer's.  ``make fuzz`` runs all targets (``__main__.py``).
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["crd.image", "crd.archive.manifest", "crd.archive.pack", "crd.api.protocol",
                                         "crd.api.kinds"]):
    from tests.fuzz import frames, targets

_FRAMED = {"codec", "self_checkpoint", "profile", "generations"}


def mutate(data: bytes, bytes_max: int, seed: int) -> bytes:
    framing = frames.framing_of(data) if name == "generations" else frames.Framing()
    return frames.mutated(data, framing, seed, atheris.Mutate, bytes_max)


if __name__ == "__main__":
    _, name, *arguments = sys.argv
    again = f"{sys.executable} -m tests.fuzz.codec {name}"  # libFuzzer begins anew by a shell where it merges
    atheris.Setup([again, *arguments], targets.TARGETS[name], **({"custom_mutator": mutate} if name in _FRAMED else {}))
    atheris.Fuzz()
