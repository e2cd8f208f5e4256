"""tmux with a shell and vim: what keeps it from being saved is said before anything is stopped."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import eventually
from tests.support.served import obstacles, run
from tests.support.victims import Program

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root


def test_a_terminal_that_controls_the_session_is_refused(tmp_path: Path) -> None:
    def tmux(*words: str) -> str:
        return subprocess.run(["tmux", "-S", tmp_path / "sock", *words], capture_output=True, text=True,
                              check=False, cwd=tmp_path).stdout

    with Program(["tmux", "-D", "-S", "sock", "-f", "/dev/null"], tmp_path) as server:
        eventually("the server", (tmp_path / "sock").exists)
        tmux("new-session", "-d", "-s", "work", "bash --norc")
        tmux("send-keys", "-t", "work", "vim -u NONE -n file", "Enter")
        eventually("vim", lambda: "~" in tmux("capture-pane", "-p", "-t", "work"))
        found = obstacles(server)
        assert [*found] == ["fd.terminal"]
        assert "controls the session of the program" in found["fd.terminal"]
        refused = run(server, "checkpoint", str(server.pid), "-o", tmp_path / "image")
        assert refused.returncode == 13
        assert not (tmp_path / "image").exists()
        tmux("send-keys", "-t", "work", "itext", "Escape", ":wq", "Enter")
        eventually("vim to have written", lambda: (tmp_path / "file").exists() and
                   (tmp_path / "file").read_text() == "text\n")
        tmux("kill-server")
