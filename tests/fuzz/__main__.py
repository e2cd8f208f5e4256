"""Fuzzes every target for its share of the time, and keeps of all inputs the fewest that reach all that was reached.

``python -m tests.fuzz SECONDS``.  The status is 1 if anything was found; the inputs are under ``var/fuzz`` then.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
FOUND = Path("var/fuzz")
_BYTES_MAX = 2048
_DONE = re.compile(r"^Done (\d+) runs", re.MULTILINE)


def fuzzed(name: str, *arguments: str | Path) -> str:
    """Return what libFuzzer says."""
    command = [sys.executable, "-m", "tests.fuzz.codec", name, f"-artifact_prefix={FOUND}/{name}-", *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace").stdout


def fuzz(name: str, seconds: float) -> int | None:
    """Fuzz a target; return how many executions that were, None if something was found."""
    corpus = CORPUS / name
    with tempfile.TemporaryDirectory() as directory:
        grown, least = Path(directory, "grown"), Path(directory, "least")
        shutil.copytree(corpus, grown)
        least.mkdir()
        said = fuzzed(name, f"-max_total_time={max(1, round(seconds))}", f"-max_len={_BYTES_MAX}", grown)
        if not (done := _DONE.search(said)):
            print(said)
            return None
        fuzzed(name, "-merge=1", least, corpus, grown)
        if any(least.iterdir()):
            shutil.rmtree(corpus)
            shutil.move(least, corpus)
    return int(done[1])


def main() -> int:
    FOUND.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in TARGETS:
        executions = results[name] = fuzz(name, float(sys.argv[1]) / len(TARGETS))
        print(f"{name}: {'something was found' if executions is None else f'{executions} executions'}", flush=True)
    print(f"{sum(filter(None, results.values()))} executions")
    return int(None in results.values())


if __name__ == "__main__":
    sys.exit(main())
