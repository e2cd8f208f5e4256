"""A daemon that may have few descriptors: clients get a clear answer, and checkpoints go on."""

from __future__ import annotations

import json
import subprocess
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from crd.api.client import Client
from crd.errors import Busy
from tests.support.daemon import RunningDaemon, eventually
from tests.support.workload import CountingProgram

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.root

DESCRIPTORS = 128
OTHERS = 40
"""Whose writes cannot all be noted: that takes a descriptor each."""


@contextmanager
def at_rest() -> Iterator[int]:
    process = subprocess.Popen(["sleep", "infinity"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)
    yield process.pid
    process.kill()
    process.wait()


def test_clients_too_many_are_told_so_and_checkpoints_go_on(tmp_path: Path) -> None:
    through = ("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}")
    with ExitStack() as stack:
        program = stack.enter_context(CountingProgram(tmp_path))
        pids = [program.pid, *(stack.enter_context(at_rest()) for _ in range(OTHERS))]
        config = "".join(f'[targets.t{number}]\npid = {pid}\nevery = "{2 if number else 1}s"\nkeep = "last=1"\n'
                         for number, pid in enumerate(pids))
        daemon = stack.enter_context(RunningDaemon(tmp_path, config, through))
        held: list[Client] = []

        def hold_more() -> None:
            while len(held) < DESCRIPTORS:
                client = stack.enter_context(Client(daemon.socket))
                client.call("GetStatus")
                held.append(client)

        with pytest.raises(Busy, match="connections to the daemon already"):
            hold_more()
        assert len(held) >= DESCRIPTORS // 16

        def newest() -> int:
            shown = daemon.run_crctl("images", "t0", "--json")
            assert shown.returncode == 0, shown.stderr
            return int(max((image["crid"] for image in json.loads(shown.stdout)), default=0))

        before = eventually("an image", newest)
        eventually("more images", lambda: newest() > before)
        assert all(client.call("GetStatus")["pid"] == daemon.process.pid for client in held if daemon.process)
        assert "Too many open files" not in daemon.log
        program.assert_unharmed()
