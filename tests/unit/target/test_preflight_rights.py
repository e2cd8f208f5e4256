"""Whether the caller may do it: users, capabilities, Yama."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from crd.native.syscall import kcmp
from crd.target import permission, preflight, procfs, task_obstacles
from tests.support.victims import Victim, until


@pytest.mark.root
def test_a_user_may_not_check_a_process_of_root(tmp_path: Path) -> None:
    with Victim("idle", tmp_path) as victim:
        report = as_nobody(victim.pid)
    assert [one["code"] for one in report] == ["task.denied"]
    assert "runs as uid 0" in report[0]["reason"]


@pytest.mark.root
def test_a_user_may_check_a_process_of_their_own() -> None:
    """Without CAP_CHECKPOINT_RESTORE the mapped files are known by name only."""
    sleep = subprocess.Popen(["/bin/sleep", "1000"], user=65534, group=65534, extra_groups=[], cwd="/",
                             stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert as_nobody(sleep.pid) == []
    finally:
        sleep.kill()
        sleep.wait()


@pytest.mark.root
def test_but_not_a_connection_to_somebody_else() -> None:
    """Only CAP_NET_ADMIN may look at it (TCP_REPAIR)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        script = f"exec 3<>/dev/tcp/127.0.0.1/{server.getsockname()[1]}; exec /bin/sleep 1000"
        client = subprocess.Popen(["/bin/bash", "-c", script], user=65534, group=65534, extra_groups=[], cwd="/",
                                  stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until("its exec", lambda: procfs.stat(client.pid).comm == "sleep")
            report = as_nobody(client.pid)
            assert [one["code"] for one in report] == ["fd.tcp"]
            assert "CAP_NET_ADMIN" in report[0]["reason"]
            assert preflight.obstacles(client.pid, kcmp=kcmp) == ()
        finally:
            client.kill()
            client.wait()


@pytest.mark.parametrize(("scope", "said"), [("1\n", None), ("3\n", "by anybody"), ("nonsense", None)])
def test_yama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scope: str, said: str | None) -> None:
    monkeypatch.setattr(permission, "YAMA_SCOPE", tmp_path / "ptrace_scope")
    (tmp_path / "ptrace_scope").write_text(scope)
    reason = permission.why_denied(os.getpid(), task_obstacles.thread_statuses(os.getpid()))
    assert reason is None if said is None else said in str(reason)


def test_yama_without_privileges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permission, "YAMA_SCOPE", tmp_path / "ptrace_scope")
    (tmp_path / "ptrace_scope").write_text("1\n")
    statuses = task_obstacles.thread_statuses(os.getpid())
    monkeypatch.setattr(procfs, "status", lambda _pid: procfs.Status(CapEff="0"))
    assert "ptrace_scope is 1" in str(permission.why_denied(os.getpid(), statuses))


def as_nobody(pid: int) -> list[dict[str, str]]:
    """What preflight tells a user without privileges."""
    source = ("import ctypes, json, os, sys\nfrom dataclasses import asdict\nfrom crd.target import preflight\n"
              "os.setgroups([]); os.setresgid(*[65534] * 3); os.setresuid(*[65534] * 3)\n"
              "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"  # dumpable again, as after an exec
              "print(json.dumps([asdict(one) for one in preflight.obstacles(int(sys.argv[1]))]))")
    done = subprocess.run([sys.executable, "-c", source, str(pid)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    value: list[dict[str, str]] = json.loads(done.stdout)
    return value
