from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from crd.api.access import Admission, Limits, Peer, group_id, peer_of
from crd.errors import Busy
from tests.support.api import connect, encoded, receive, serving

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.api.conftest import Handler

NOBODY = 65534
GAMES = "games"

BECOME = """
import os, sys
from pathlib import Path
from crd.api.client import Client
from crd.errors import CrdError
path, uid, gid, *groups = sys.argv[1], *map(int, sys.argv[2:])
os.setgroups(groups)
os.setgid(gid)
os.setuid(uid)
"""
ASK = """
try:
    with Client(Path(path)) as client:
        print(json.dumps(client.call("GetStatus")))
except CrdError as error:
    print(json.dumps(error.to_json()))
"""
HOLD = """
held = [socket.socket(socket.AF_UNIX) for _ in range(8)]
for each in held:
    each.connect(path)
held[-1].recv(1)
print("full", flush=True)
sys.stdin.read()
"""


def as_user(script: str, path: Path, uid: int, gid: int, groups: list[int]) -> list[str | Path]:
    """Return the command that becomes another user and runs the script (it imports first: ours may be private)."""
    return [sys.executable, "-c", f"import json, socket\n{BECOME}{script}", path, *map(str, (uid, gid, *groups))]


def ask_as(path: Path, uid: int, gid: int, groups: list[int]) -> dict[str, Any]:
    """Call GetStatus from a process of another user, with the real client."""
    done = subprocess.run(as_user(ASK, path, uid, gid, groups), capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


def peer(uid: int, *, is_admin: bool = False) -> Peer:
    return Peer(uid, uid, 1, frozenset({uid}), is_admin)


@pytest.mark.root
class TestWhoMayConnect:
    def test_a_stranger_is_kept_out_and_told_why(self, path: Path, handler: Handler) -> None:
        with serving(path, handler, group=GAMES):
            refused = ask_as(path, NOBODY, NOBODY, [])
        assert refused["error"] == "api.access-denied"
        assert "usermod -aG crd" in refused["hint"]
        assert not handler.calls

    def test_a_member_of_the_group_is_an_admin(self, path: Path, handler: Handler) -> None:
        gid = group_id(GAMES)
        assert gid
        with serving(path, handler, group=GAMES):
            assert ask_as(path, NOBODY, NOBODY, [gid]) == {"method": "GetStatus", "uid": NOBODY, "is_admin": True}
            assert ask_as(path, NOBODY, gid, [])["is_admin"] is True
        [(_, _, supplementary), (_, _, primary)] = handler.calls
        assert supplementary.groups == {NOBODY, gid}
        assert primary.groups == {gid}

    def test_public_lets_strangers_in_as_themselves(self, path: Path, handler: Handler) -> None:
        with serving(path, handler, group=GAMES, public=True):
            assert ask_as(path, NOBODY, NOBODY, []) == {"method": "GetStatus", "uid": NOBODY, "is_admin": False}
            assert ask_as(path, 0, 0, [])["is_admin"] is True

    def test_public_without_the_group_makes_nobody_an_admin(self, path: Path, handler: Handler) -> None:
        with serving(path, handler, group="crd-no-such-group", public=True):
            assert ask_as(path, NOBODY, NOBODY, [])["is_admin"] is False

    def test_without_the_group_only_root_connects(self, path: Path, handler: Handler) -> None:
        with serving(path, handler, group="crd-no-such-group"):
            assert ask_as(path, NOBODY, NOBODY, [])["error"] == "api.access-denied"
            assert ask_as(path, 0, 0, [])["is_admin"] is True

    def test_more_groups_than_getsockopt_takes(self, path: Path, handler: Handler) -> None:
        with serving(path, handler, public=True):
            answer = ask_as(path, NOBODY, NOBODY, list(range(70_000, 70_300)))
        assert answer["is_admin"] is False
        assert handler.calls[0][2].groups == {NOBODY}

    def test_one_user_cannot_take_all_connections(self, path: Path, handler: Handler) -> None:
        with serving(path, handler, public=True, limits=Limits(connections_per_uid=4)):
            holder = subprocess.Popen(as_user(HOLD, path, NOBODY, NOBODY, []), stdin=subprocess.PIPE,
                                      stdout=subprocess.PIPE)
            with holder:
                assert holder.stdout.readline() == b"full\n"
                assert ask_as(path, NOBODY, NOBODY, [])["error"] == "api.busy"
                assert ask_as(path, NOBODY - 1, NOBODY, [])["uid"] == NOBODY - 1
                with connect(path) as client:
                    client.sendall(encoded("io.crd.GetStatus"))
                    assert receive(client)
                holder.stdin.close()


def test_the_peer_of_a_pair_is_ourselves() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        found = peer_of(ours, None)
    assert (found.uid, found.gid, found.pid) == (os.getuid(), os.getgid(), os.getpid())


def test_groups_are_looked_up() -> None:
    assert group_id("root") == 0
    assert group_id("crd-no-such-group") is None


def test_connections_leave_most_descriptors_to_the_work() -> None:
    assert Limits.within(65536) == Limits.within(1024) == Limits()
    few = Limits.within(160)
    assert (few.connections, few.connections_kept, few.connections_per_uid) == (40, 5, 5)
    assert Limits.within(8).connections_per_uid == 1


def admits(admission: Admission, one: Peer) -> bool:
    try:
        admission.admit(one)
    except Busy:
        return False
    return True


def test_admission_counts_by_user_and_keeps_room_for_admins() -> None:
    admission = Admission(Limits(connections=6, connections_kept=2, connections_per_uid=3))
    assert [admits(admission, peer(1)) for _ in range(4)] == [True, True, True, False]
    assert [admits(admission, peer(2)) for _ in range(2)] == [True, False]
    assert [admits(admission, peer(0, is_admin=True)) for _ in range(3)] == [True, True, False]
    admission.leave(peer(1))
    admission.leave(peer(2))
    assert not admits(admission, peer(1))
    admission.leave(peer(0, is_admin=True))
    assert admits(admission, peer(1))
    assert not admits(admission, peer(1))


def test_no_admin_and_no_process_takes_all() -> None:
    admission = Admission(Limits(connections=6, connections_kept=2, connections_per_process=3))
    root, leaking = peer(0, is_admin=True), replace(peer(0, is_admin=True), pid=7)
    for _ in range(3):
        admission.admit(leaking)
    with pytest.raises(Busy, match="process 7 has 3 connections"):
        admission.admit(leaking)
    admission.admit(root)
    with pytest.raises(Busy, match="user 0 has 4 connections"):
        admission.admit(root)
    admission.admit(peer(5, is_admin=True))
    admission.leave(leaking)
    assert admits(admission, leaking)
