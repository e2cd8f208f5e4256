"""Filters of seccomp(2): brought back as they were, or refused, and never what ends the target."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from crd.engine.api import checkpoint
from crd.engine.crid import CridCounter
from crd.errors import TargetUnsupported
from tests.engine.images import killed_while_taking, restarted, taken
from tests.engine.programs import interpreted
from tests.support.victims import Victim

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root


def test_a_filter_that_allows_no_snapshot_child(tmp_path: Path) -> None:
    with Victim("confined", tmp_path, "forbids") as victim:
        with (tmp_path / "image").open("wb") as file:
            result = checkpoint(victim.pid, file.fileno(), crids=CridCounter(tmp_path / "crid"))
        assert result.method == "copy"
        assert "allows the target no snapshot child (wait4)" in result.method_reason
        victim.kill()
        restarted(tmp_path / "image", victim)
        victim.verify()


def test_a_filter_that_would_kill_it(tmp_path: Path) -> None:
    with Victim("confined", tmp_path, "kills") as victim:
        for _ in range(3):
            with pytest.raises(TargetUnsupported) as refused:
                taken(victim)
            [reason] = refused.value.reasons
            assert reason.code == "task.seccomp"
            assert re.fullmatch(r"runs under a filter of seccomp that may not allow sigaltstack, .*", reason.reason)
        victim.assert_unharmed()
        victim.verify()


SUPERVISED = """
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
code = [(0x20, 0, 0, 0), (0x15, 0, 1, 135), (6, 0, 0, 0x7fc00000), (6, 0, 0, 0x7fff0000)]  # personality(2) is notified
buffer = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *one) for one in code))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(code), ctypes.addressof(buffer)))
listener = libc.syscall(317, 1, 8, program)
assert listener >= 0
os.close(listener)
rest()
"""


def test_a_filter_with_a_supervisor(tmp_path: Path) -> None:
    with interpreted(tmp_path, SUPERVISED) as program:
        with pytest.raises(TargetUnsupported) as refused:
            taken(program)
        assert [reason.code for reason in refused.value.reasons] == ["task.seccomp"]
        assert "to a supervisor" in refused.value.reasons[0].reason
        program.assert_unharmed()


def test_nobody_is_killed_when_a_checkpoint_is(tmp_path: Path) -> None:
    with Victim("confined", tmp_path) as victim:
        for _ in killed_while_taking(victim):
            victim.assert_unharmed()
        victim.verify()
