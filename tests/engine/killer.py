"""Checkpoints that are killed at random times: ``python -m tests.engine.killer PID DIRECTORY METHOD KILLS SEED``.

A parent that has taken one image, so that all is imported, forks a process that takes images of the target over and
over; some milliseconds later the parent kills it and forks the next.  Meanwhile it sends SIGRTMIN to the target.  In
the end it takes one more image, and prints one JSON object: whole images, signals sent, and processes that ended by
themselves.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

from crd.engine.api import CheckpointOptions, checkpoint
from crd.engine.crid import CridCounter

LONGEST_LIFE_SECONDS = 0.08
LONGEST_SILENCE_SECONDS = 0.02


def take(pid: int, crids: CridCounter, options: CheckpointOptions) -> None:
    with open(os.devnull, "wb") as null:
        checkpoint(pid, null.fileno(), crids=crids, options=options)


def take_for_ever(pid: int, crids: CridCounter, options: CheckpointOptions) -> NoReturn:
    try:
        while True:
            take(pid, crids, options)
    except BaseException:  # noqa: BLE001  (a fork of the killer must not return into it)
        traceback.print_exc()
        os._exit(1)


def kill_them(pid: int, directory: Path, method: str, kills: int, seed: int) -> dict[str, int]:
    chance = random.Random(seed)
    crids = CridCounter(directory / "crid")
    options = CheckpointOptions(method=method)
    take(pid, crids, options)
    sent = failed = 0
    for _ in range(kills):
        child = os.fork()
        if not child:
            take_for_ever(pid, crids, options)
        kill_at = time.monotonic() + chance.uniform(0.0005, LONGEST_LIFE_SECONDS)
        while (left := kill_at - time.monotonic()) > 0:
            time.sleep(min(left, chance.uniform(0, LONGEST_SILENCE_SECONDS)))
            os.kill(pid, signal.SIGRTMIN)
            sent += 1
        os.kill(child, signal.SIGKILL)
        failed += os.WIFEXITED(os.waitpid(child, 0)[1])
    take(pid, crids, options)
    return {"images": crids.next() - 1, "sent": sent, "failed": failed}


if __name__ == "__main__":
    print(json.dumps(kill_them(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))))
