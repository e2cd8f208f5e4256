"""Connections of TCP to processes outside: brought back where the other end knows nothing, else over."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from array import array
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from crd.engine.api import After, CheckpointOptions, CheckpointResult, RestartOptions, Tcp, checkpoint, restart
from crd.engine.crid import CridCounter
from crd.engine.userspace.fds import inet, network_hold, tcp_outside, tcp_repair
from crd.errors import ResourceChanged
from tests.engine.images import restarted, taken
from tests.engine.programs import interpreted
from tests.support.tcp_peer import Peer, network_of
from tests.support.victims import Program, Victim, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from crd.engine.userspace.fds.description import Description
    from crd.image.objects import InetSocket

pytestmark = pytest.mark.root

OVER_THERE, OVER_HERE = "10.213.77.2", "10.213.77.1"
N_PACED = 5_000_000
PACED = """
import array, socket, sys, time
content = array.array("I", range(int(sys.argv[2]))).tobytes()
sock = socket.socket()
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
sock.connect(("127.0.0.1", int(sys.argv[1])))
sock.sendall(content[:len(content) // 2])  # as fast as it goes, so that many packets may be under way
sock.setsockopt(socket.SOL_SOCKET, 47, 5_000_000)  # SO_MAX_PACING_RATE
open("paced", "w").close()
sock.sendall(content[len(content) // 2:])
time.sleep(1000)
"""
STORING_SECONDS = 1.0
"""Between the stop, in which the connection is looked at, and the target's end."""


@contextmanager
def peer_in_another_network() -> Iterator[Peer]:
    """A peer behind a cable, with a network of its own."""
    holder = subprocess.Popen(["unshare", "--net", "sleep", "600"])
    name = f"crd{os.getpid()}"
    try:
        ours = os.stat("/proc/self/ns/net").st_ino
        until("its network", lambda: os.stat(f"/proc/{holder.pid}/ns/net").st_ino != ours)
        inside = ["nsenter", "--net", f"--target={holder.pid}"]
        for words in (["ip", "link", "add", name, "type", "veth", "peer", "name", "there", "netns", str(holder.pid)],
                      ["ip", "address", "add", f"{OVER_HERE}/30", "dev", name], ["ip", "link", "set", name, "up"],
                      [*inside, "ip", "address", "add", f"{OVER_THERE}/30", "dev", "there"],
                      [*inside, "ip", "link", "set", "there", "up"]):
            subprocess.run(words, check=True)
        with network_of(holder.pid):
            peer = Peer(OVER_THERE)
        with peer:
            yield peer
    finally:
        subprocess.run(["ip", "link", "delete", name], check=False)
        holder.kill()
        holder.wait()


@contextmanager
def peer_at(where: str) -> Iterator[Peer]:
    with peer_in_another_network() if where == "elsewhere" else Peer(where) as peer:
        yield peer


@contextmanager
def talking(peer: Peer, directory: Path, name: str = "peers") -> Iterator[Victim]:
    with Victim(name, directory, peer.address, peer.port) as victim:
        until("the game", lambda: peer.played > 3)
        yield victim


def take(victim: Victim, image: Path, after: After = After.RUN) -> CheckpointResult:
    with image.open("wb") as file:
        return checkpoint(victim.pid, file.fileno(), crids=CridCounter(image.parent / "crid"),
                          options=CheckpointOptions(after=after))


def bring_back(victim: Victim, image: Path, tcp: Tcp) -> tuple[str, ...]:
    with image.open("rb") as file:
        notes = restart(file.fileno(), options=RestartOptions(tcp=tcp)).notes
    victim.restarted_as(victim.pid)
    return notes


def verify(victim: Victim, peer: Peer) -> None:
    """Both ends verify themselves."""
    failed: list[BaseException] = []

    def finish() -> None:
        try:
            peer.finish()
        except BaseException as error:  # noqa: BLE001  told below
            failed.append(error)

    ending = threading.Thread(target=finish)
    ending.start()
    victim.verify()
    ending.join()
    assert not failed, failed


@pytest.mark.parametrize("name", ["peers", "peers-musl"])
def test_left_running(name: str, tmp_path: Path) -> None:
    with Peer("127.0.0.1") as peer, talking(peer, tmp_path, name) as victim:
        for number in range(5):
            take(victim, tmp_path / f"{number}.image")
            victim.assert_unharmed()
            before = peer.played
            until("the game to go on", lambda before=before: peer.played > before + 3)
        verify(victim, peer)


@pytest.mark.parametrize("where", ["127.0.0.1", "::1", "elsewhere"])
def test_killed_by_the_checkpoint_and_restarted(where: str, tmp_path: Path) -> None:
    with peer_at(where) as peer, talking(peer, tmp_path) as victim:
        for round_ in range(3):
            take(victim, tmp_path / f"{round_}.image", After.KILL)
            victim.wait_gone()
            peer.send_into_the_gap()
            before = peer.played
            bring_back(victim, tmp_path / f"{round_}.image", Tcp.ESTABLISHED)
            until("the game to go on", lambda before=before: peer.played > before + 3)
        verify(victim, peer)


def test_what_the_kernel_sends_by_itself_before_the_target_is_killed_hinders_nothing(tmp_path: Path) -> None:
    """It does by a timer where the target's socket is paced, though the target is stopped and nothing comes in."""
    content = bytearray()

    def receive() -> None:
        with server.accept()[0] as peer:
            while len(content) < 4 * N_PACED and (data := peer.recv(1 << 20)):
                content.extend(data)

    with socket.create_server(("127.0.0.1", 0)) as server, Program(
            [sys.executable, "-c", PACED, str(server.getsockname()[1]), str(N_PACED)], tmp_path) as program:
        receiving = threading.Thread(target=receive, daemon=True)
        receiving.start()
        until("the slow part", (tmp_path / "paced").exists)
        with (tmp_path / "image").open("wb") as file:
            checkpoint(program.pid, file.fileno(), crids=CridCounter(tmp_path / "crid"),
                       options=CheckpointOptions(after=After.KILL), commit=lambda _: time.sleep(STORING_SECONDS))
        program.wait_gone()
        with (tmp_path / "image").open("rb") as file:
            restart(file.fileno(), options=RestartOptions(tcp=Tcp.ESTABLISHED))
        program.restarted_as(program.pid)
        until("the rest", lambda: len(content) == 4 * N_PACED)
        assert content == array("I", range(N_PACED)).tobytes()


@pytest.mark.parametrize("downtime_ns", [0, 999_999, 1_000_000, 3_000_001, 10**12, 3600 * 10**9])
@pytest.mark.parametrize("timestamp", [0, 1, 1_000_000, 1_000_001, 0xFFFF_FFFE, 0xFFFF_FFFF])
def test_timestamps_go_on_in_their_unit(timestamp: int, downtime_ns: int) -> None:
    """The lowest bit is the unit: an odd number of milliseconds once made microseconds of them."""
    stamp = tcp_outside.stamp_after(timestamp, downtime_ns)
    assert stamp & 1 == timestamp & 1
    assert 0 <= stamp < 1 << 32
    assert (stamp - timestamp - downtime_ns // (1_000 if timestamp & 1 else 1_000_000)) % 2**32 in {1, 2, 3}


@pytest.mark.parametrize("where", ["127.0.0.1", "::1", "elsewhere"])
def test_the_older_of_two_images(where: str, tmp_path: Path) -> None:
    """The other end has seen what the image does not know of: there is no going on."""
    with peer_at(where) as peer, talking(peer, tmp_path) as victim:
        take(victim, tmp_path / "older.image")
        before = peer.played
        until("the game to go on", lambda: peer.played > before + 3)
        take(victim, tmp_path / "newer.image")
        victim.kill()
        until("the other end to know", peer.has_been_told)
        with pytest.raises(ResourceChanged, match=r"has not been held.*over"):
            bring_back(victim, tmp_path / "older.image", Tcp.ESTABLISHED)
        assert not victim.is_there()
        notes = bring_back(victim, tmp_path / "older.image", Tcp.AUTO)
        assert len([note for note in notes if note.endswith("is over, as its program is told")]) == 5
        victim.file("over").touch()
        victim.verify()


def test_an_image_goes_on_with_its_connections_only_once(tmp_path: Path) -> None:
    with Peer("127.0.0.1") as peer, talking(peer, tmp_path) as victim:
        take(victim, tmp_path / "image", After.KILL)
        victim.wait_gone()
        bring_back(victim, tmp_path / "image", Tcp.ESTABLISHED)
        before = peer.played
        until("the game to go on", lambda: peer.played > before + 3)
        victim.kill()
        with pytest.raises(ResourceChanged, match="has not been held"):
            bring_back(victim, tmp_path / "image", Tcp.ESTABLISHED)


def test_the_other_end_is_told_if_the_connections_are_not_to_go_on(tmp_path: Path) -> None:
    with peer_at("elsewhere") as peer, talking(peer, tmp_path) as victim:
        take(victim, tmp_path / "image", After.KILL)
        victim.wait_gone()
        assert not peer.has_been_told()
        bring_back(victim, tmp_path / "image", Tcp.CLOSE)
        until("the other end to know", peer.has_been_told)
        victim.file("over").touch()
        victim.verify()


class CalledOffError(Exception):
    """By a test."""


def test_a_checkpoint_that_is_called_off_lets_the_connections_go(tmp_path: Path) -> None:
    def refuse(_: CheckpointResult) -> None:
        raise CalledOffError

    with Peer("127.0.0.1") as peer, talking(peer, tmp_path) as victim:
        with (tmp_path / "image").open("wb") as file, pytest.raises(CalledOffError):
            checkpoint(victim.pid, file.fileno(), crids=CridCounter(tmp_path / "crid"),
                       options=CheckpointOptions(after=After.KILL), commit=refuse)
        before = peer.played
        until("the game to go on", lambda: peer.played > before + 3)
        verify(victim, peer)


def test_a_restart_that_is_called_off_leaves_the_connections_held(tmp_path: Path) -> None:
    with Peer("127.0.0.1") as peer, talking(peer, tmp_path) as victim:
        take(victim, tmp_path / "image", After.KILL)
        victim.wait_gone()

        def refuse(_: object) -> None:
            raise CalledOffError

        with (tmp_path / "image").open("rb") as file, pytest.raises(CalledOffError):
            restart(file.fileno(), confirm=refuse)
        victim.wait_gone()
        bring_back(victim, tmp_path / "image", Tcp.ESTABLISHED)
        verify(victim, peer)


def test_no_connection_is_harmed_when_a_checkpoint_is_killed(tmp_path: Path) -> None:
    source = ("import sys\nfrom pathlib import Path\nfrom crd.engine.api import checkpoint\n"
              "from crd.engine.crid import CridCounter\nprint(flush=True)\n"
              "while True:\n    with open(sys.argv[2], 'wb') as file:\n"
              "        checkpoint(int(sys.argv[1]), file.fileno(), crids=CridCounter(Path(sys.argv[3])))\n")
    with Peer("127.0.0.1") as peer, talking(peer, tmp_path) as victim:
        for number in range(20):
            words = [sys.executable, "-c", source, str(victim.pid), tmp_path / "image", tmp_path / "crid"]
            with subprocess.Popen(words, stdout=subprocess.PIPE) as worker:
                assert worker.stdout
                worker.stdout.readline()
                time.sleep(0.005 * number)
                worker.kill()
        verify(victim, peer)


def test_what_is_held_can_be_let_go_twice() -> None:
    one = network_hold.Ends("127.0.0.1", 1, "127.0.0.1", 2)
    network_hold.keep([one])
    assert network_hold.kept([one]) == {one}
    network_hold.let_go([one])
    network_hold.let_go([one])
    assert network_hold.kept([one]) == set()


SPEAKS_TO_ITSELF = """
import socket
listener = LISTENER
one = socket.create_connection(("127.0.0.1", listener.getsockname()[1]))
other = listener.accept()[0]
open("ready", "w").close()
for number in range(10**9):
    for sender, receiver in ((one, other), (other, one)):
        sender.sendall(b"%09d" % number)
        assert receiver.recv(9) == b"%09d" % number
    open("count", "w").write(str(number))
    time.sleep(0.001)
"""


@pytest.mark.parametrize("listener", ["socket.create_server(('127.0.0.1', 0))",
                                      "socket.create_server(('::', 0), family=socket.AF_INET6, dualstack_ipv6=True)"])
def test_a_connection_within_the_image_is_made_again_and_again(tmp_path: Path, listener: str) -> None:
    """The one before lingers for a minute, and has no timestamps by which the kernel would let it be replaced."""
    def counted() -> int:
        return int((tmp_path / "count").read_text() or "0") if (tmp_path / "count").exists() else 0

    with interpreted(tmp_path, f"import time\n{SPEAKS_TO_ITSELF.replace('LISTENER', listener)}") as program:
        for _ in range(4):
            image = taken(program)
            assert restarted(image, program).notes == ()
            before = counted()
            until("it to count on", lambda so_far=before: program.is_running() and counted() not in range(so_far + 20))
        assert program.stderr() == ""


FILLS_ITSELF = """
import hashlib, os, socket, time
listener = socket.create_server(("127.0.0.1", 0))
one = socket.create_connection(listener.getsockname())
other = listener.accept()[0]
one.setblocking(False)
sent, number = hashlib.sha256(), 0
filled = False
while not filled:
    piece = hashlib.sha256(b"%d" % number).digest() * 1000
    try:
        length = one.send(piece)
    except BlockingIOError:
        filled = True
    else:
        sent.update(piece[:length])
        number += length
other.sendall(b"back")
open("ready", "w").close()
while not os.path.exists("go"):
    time.sleep(0.01)
assert one.recv(9) == b"back"
received, left = hashlib.sha256(), number
while left:
    piece = other.recv(min(left, 65536))
    received.update(piece)
    left -= len(piece)
assert received.digest() == sent.digest()
one.setblocking(True)
one.sendall(b"more")
assert other.recv(9) == b"more"
open("result", "w").write(str(number))
"""


def test_what_an_end_within_the_image_has_no_room_for_arrives(tmp_path: Path) -> None:
    with interpreted(tmp_path, FILLS_ITSELF) as program:
        for _ in range(3):
            image = taken(program)
            restarted(image, program)
        (tmp_path / "go").touch()
        until("its end", lambda: not program.is_running())
        assert program.stderr() == ""
        assert int((tmp_path / "result").read_text()) > 500_000


def test_an_end_that_is_just_being_closed_is_saved_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its FIN is acknowledged between the look at the socket and the look at what waits in it."""
    dump, looks = inet._dump, []

    def too_early(one: Description, sock: socket.socket) -> tuple[InetSocket, int]:
        record, state = dump(one, sock)
        if state != tcp_repair.FIN_WAIT_2:
            return record, state
        looks.append(state)
        if len(looks) == 1:
            record.shutdown, state = 0, tcp_repair.FIN_WAIT_1
        return record, state

    monkeypatch.setattr(inet, "_dump", too_early)
    with Victim("connections", tmp_path) as victim:
        image = taken(victim)
        assert len(looks) == 2, "it was let go, and looked at again"
        restarted(image, victim)
        victim.verify()
