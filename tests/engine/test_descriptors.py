"""Descriptors in states that cannot be saved are refused with the reason, and the program runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from crd.errors import TargetUnsupported
from tests.engine.images import taken
from tests.engine.programs import interpreted

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root

PRELUDE = """
import ctypes, os, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
"""


@pytest.mark.parametrize(("source", "code", "said"), [
    ("fd = libc.inotify_init1(0); libc.inotify_add_watch(fd, b'.', 0x100); open('new', 'w')", "fd.inotify", "not read"),
])
def test_states_that_only_the_stop_shows(tmp_path: Path, source: str, code: str, said: str) -> None:
    with interpreted(tmp_path, f"{PRELUDE}{source}\nrest()") as program:
        with pytest.raises(TargetUnsupported) as refused:
            taken(program)
        assert [reason.code for reason in refused.value.reasons] == [code]
        assert said in refused.value.reasons[0].reason
        program.assert_unharmed()
