from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import select
import socket
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from crd.api.access import Limits
from crd.api.protocol import MESSAGE_BYTES_MAX
from tests.support.api import PATIENCE_SECONDS, connect, encoded, hung_up, receive, serving
from tests.support.daemon import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.api.conftest import Handler

STATUS = encoded("io.crd.GetStatus")


def answers(path: Path) -> bool:
    """Tell whether the server serves a newcomer."""
    with connect(path) as client:
        client.sendall(STATUS)
        return receive(client)[0]["parameters"]["method"] == "GetStatus"


@pytest.mark.usefixtures("server")
class TestCalls:
    def test_results(self, path: Path, handler: Handler) -> None:
        with connect(path) as client:
            client.sendall(encoded("io.crd.Restart", parameters={"reference": "7", "pids": "new"}))
            assert receive(client) == [
                {"parameters": {"method": "Restart", "uid": os.getuid(), "is_admin": os.getuid() == 0}}]
        [(method, parameters, peer)] = handler.calls
        assert method == "Restart"
        assert parameters == {"reference": "7", "pids": "new", "files": None, "tcp": None, "stdio": None,
                              "force_version": None}
        assert (peer.uid, peer.gid, peer.pid) == (os.getuid(), os.getgid(), os.getpid())
        assert peer.groups == {os.getgid(), *os.getgroups()}

    def test_answers_come_in_order_of_the_calls_however_they_arrive(self, path: Path) -> None:
        calls = STATUS + encoded("io.crd.ListTargets") + encoded("io.crd.RemoveTarget", parameters={"name": "a"})
        with connect(path) as client:
            for piece in (calls[:1], calls[1:50], calls[50:]):
                client.sendall(piece)
            methods = [reply["parameters"]["method"] for reply in receive(client, 3)]
        assert methods == ["GetStatus", "ListTargets", "RemoveTarget"]

    def test_more_replies(self, path: Path) -> None:
        with connect(path) as client:
            client.sendall(encoded("io.crd.Checkpoint", parameters={"target": "a"}, more=True))
            *progress, last = receive(client, 4)
        assert progress == [{"parameters": {"stage": "memory", "bytes": n}, "continues": True} for n in range(3)]
        assert "continues" not in last

    def test_without_more_there_is_one_reply(self, path: Path) -> None:
        with connect(path) as client:
            client.sendall(encoded("io.crd.Checkpoint", parameters={"target": "a"}) + STATUS)
            assert [reply["parameters"]["method"] for reply in receive(client, 2)] == ["Checkpoint", "GetStatus"]

    def test_oneway_calls_are_carried_out_and_not_answered(self, path: Path, handler: Handler) -> None:
        with connect(path) as client:
            client.sendall(encoded("io.crd.ListTargets", oneway=True) + encoded("io.crd.Nothing", oneway=True) + STATUS)
            assert receive(client)[0]["parameters"]["method"] == "GetStatus"
        assert [method for method, *_ in handler.calls] == ["ListTargets", "GetStatus"]

    def test_half_closed_for_writing_still_gets_its_answers(self, path: Path) -> None:
        with connect(path) as client:
            client.sendall(STATUS + encoded("io.crd.Checkpoint", parameters={"target": "a"}, more=True))
            client.shutdown(socket.SHUT_WR)
            assert hung_up(client).count(b"\0") == 5

    def test_who_we_are(self, path: Path) -> None:
        with connect(path) as client:
            client.sendall(encoded("org.varlink.service.GetInfo"))
            [reply] = receive(client)
        assert reply["parameters"]["interfaces"] == ["org.varlink.service", "io.crd"]
        assert reply["parameters"]["version"]

    @pytest.mark.parametrize("name", ["io.crd", "org.varlink.service"])
    def test_interface_texts(self, path: Path, name: str) -> None:
        with connect(path) as client:
            client.sendall(encoded("org.varlink.service.GetInterfaceDescription", parameters={"interface": name}))
            assert f"\ninterface {name}\n" in receive(client)[0]["parameters"]["description"]


@pytest.mark.usefixtures("server")
class TestErrors:
    @pytest.mark.parametrize(("call", "error", "parameters"), [
        (encoded("io.crd.Nothing"), "MethodNotFound", {"method": "io.crd.Nothing"}),
        (encoded("org.varlink.service.Nothing"), "MethodNotFound", {"method": "org.varlink.service.Nothing"}),
        (encoded("org.example.Nothing"), "InterfaceNotFound", {"interface": "org.example"}),
        (encoded("Nothing"), "InterfaceNotFound", {"interface": ""}),
        (encoded(""), "InterfaceNotFound", {"interface": ""}),
        (encoded("io.crd.GetStatus", upgrade=True), "MethodNotImplemented", {"method": "io.crd.GetStatus"}),
        (encoded("io.crd.GetStatus", parameters={"verbose": True}), "InvalidParameter", {"parameter": "verbose"}),
        (encoded("io.crd.GetImage"), "InvalidParameter", {"parameter": "reference"}),
        (encoded("io.crd.GetImage", parameters={"reference": 7}), "InvalidParameter", {"parameter": "reference"}),
        (encoded("io.crd.Restart", parameters={"reference": "7", "pids": "whatever"}), "InvalidParameter",
         {"parameter": "pids"}),
        (encoded("io.crd.AddTarget", parameters={"target": {"name": "a", "held": False, "colour": "b"}}),
         "InvalidParameter", {"parameter": "target.colour"}),
        (encoded("org.varlink.service.GetInterfaceDescription", parameters={"interface": "../x"}),
         "InterfaceNotFound", {"interface": "../x"}),
        (encoded("org.varlink.service.GetInterfaceDescription"), "InvalidParameter", {"parameter": "interface"}),
    ])
    def test_of_the_service(self, path: Path, handler: Handler, call: bytes, error: str,
                            parameters: dict[str, str]) -> None:
        with connect(path) as client:
            client.sendall(call + STATUS)
            refused, served = receive(client, 2)
        assert refused == {"error": f"org.varlink.service.{error}", "parameters": parameters}
        assert served["parameters"]["method"] == "GetStatus"
        assert [method for method, *_ in handler.calls] == ["GetStatus"]

    def test_of_crd(self, path: Path) -> None:
        with connect(path) as client:
            client.sendall(encoded("io.crd.GetImage", parameters={"reference": "4711"}))
            [reply] = receive(client)
        assert reply == {"error": "io.crd.Failed", "parameters": {
            "code": "catalog.image-not-found", "message": "there is no image 4711", "hint": "Look again.",
            "exit_status": 11, "details": {"reference": 7, "retryable": False}}}

    def test_a_mistake_of_the_handler_is_logged_and_not_told(self, path: Path,
                                                             caplog: pytest.LogCaptureFixture) -> None:
        with connect(path) as client:
            client.sendall(encoded("io.crd.CancelRequest", parameters={"number": 1}) + STATUS)
            failed, _ = receive(client, 2)
        assert failed["error"] == "io.crd.Failed"
        assert failed["parameters"]["code"] == "crd.failed"
        assert "secret" not in str(failed)
        assert "a secret" in caplog.text


@pytest.mark.usefixtures("server")
class TestAbuse:
    @pytest.mark.parametrize("rubbish", [
        b"\0", b"{}\0", b"[1]\0", b"GET / HTTP/1.1\r\n\r\n\0", bytes(range(1, 256)) + b"\0", bytes(4096),
        b'{"method": 7}\0', b'{"method":"io.crd.GetStatus","oneway":true,"more":true}\0', b"{" * 2_000_000,
        b'{"method":"' + b"a" * MESSAGE_BYTES_MAX + b'"}\0', b"[" * 500_000 + b"\0",
    ], ids=lambda rubbish: repr(rubbish[:20]))
    def test_rubbish_costs_its_sender_the_connection(self, path: Path, handler: Handler, rubbish: bytes) -> None:
        with connect(path) as bystander, connect(path) as client:
            with suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(rubbish)
            assert hung_up(client) == b""
            bystander.sendall(STATUS)
            assert receive(bystander)
        assert [method for method, *_ in handler.calls] == ["GetStatus"]

    def test_a_call_as_long_as_allowed(self, path: Path) -> None:
        call = encoded("io.crd.GetImage", parameters={"reference": "x"})
        longest = call.replace(b'"x"', b'"' + b"x" * (MESSAGE_BYTES_MAX - len(call) + 2) + b'"')
        assert len(longest) == MESSAGE_BYTES_MAX + 1
        with connect(path) as client:
            client.sendall(longest)
            assert receive(client)[0]["parameters"]["code"] == "catalog.image-not-found"

    def test_a_flood_of_calls_costs_the_connection(self, path: Path) -> None:
        with connect(path) as client, pytest.raises((BrokenPipeError, ConnectionResetError)):
            deque(map(client.sendall, itertools.repeat(STATUS * 1000)), maxlen=0)
        assert answers(path)

    def test_hanging_up_ends_a_call_for_more(self, path: Path, handler: Handler) -> None:
        with connect(path) as client:
            client.sendall(encoded("io.crd.GetRequest", parameters={"number": 1, "wait": True}, more=True))
            assert handler.waiting.wait(PATIENCE_SECONDS)
            assert not handler.cancelled.is_set()
        assert handler.cancelled.wait(PATIENCE_SECONDS)
        assert answers(path)

    def test_who_hung_up_before_its_call_for_more_is_not_answered(
            self, home: Path, caplog: pytest.LogCaptureFixture) -> None:
        path, closed, begun, called = home / "other.sock", threading.Event(), threading.Event(), []

        async def handler(method, parameters, peer, more):
            called.append(method)
            if method == "Reload":
                begun.set()
                await asyncio.to_thread(closed.wait, PATIENCE_SECONDS)
                for _ in range(10):  # turns of the loop in which it sees the hang-up
                    await asyncio.sleep(0)
            return {}

        with serving(path, handler) as server:
            with connect(path) as client:
                client.sendall(STATUS)
                select.select([client], [], [], PATIENCE_SECONDS)  # a reply that is not read: the hang-up is a reset
                client.sendall(encoded("io.crd.Reload", oneway=True)
                               + encoded("io.crd.GetRequest", parameters={"number": 1}, more=True))
                assert begun.wait(PATIENCE_SECONDS)
            closed.set()
            eventually("the connection to end", lambda: not server._connections)
        assert called == ["GetStatus", "Reload"]
        assert "Traceback" not in caplog.text

    def test_hanging_up_in_the_middle_of_a_call(self, path: Path) -> None:
        for length in range(0, len(STATUS), 7):
            with connect(path) as client:
                client.sendall(STATUS[:length])
        assert answers(path)

    def test_a_hundred_connections_at_once(self, path: Path) -> None:
        clients = [connect(path) for _ in range(100)]
        for client in clients:
            client.sendall(STATUS)
        for client in clients:
            assert receive(client)
            client.close()


class TestLimits:
    def test_connections_beyond_the_limit_are_told_so_and_closed(self, path: Path, handler: Handler) -> None:
        with serving(path, handler, limits=Limits(connections=3, connections_kept=0)):
            clients = [connect(path) for _ in range(3)]
            for client in clients:
                client.sendall(STATUS)
                assert receive(client)
            with connect(path) as one_too_many:
                assert b"3 connections to the daemon already" in hung_up(one_too_many)
            for client in clients:
                client.sendall(STATUS)
                assert receive(client)
            clients.pop().close()
            served = False
            while not served:  # until the server has seen that one is gone
                with connect(path) as newcomer, suppress(BrokenPipeError, ConnectionResetError):
                    newcomer.sendall(STATUS)
                    served = b"api.busy" not in newcomer.recv(1 << 16)
            for client in clients:
                client.close()

    def test_idle_connections_are_closed(self, path: Path, handler: Handler) -> None:
        with serving(path, handler, limits=Limits(idle_seconds=0.05)), connect(path) as client:
            assert hung_up(client) == b""

    def test_half_a_message_does_not_wait_for_ever(self, path: Path, handler: Handler) -> None:
        with serving(path, handler, limits=Limits(message_seconds=0.2)), connect(path) as client:
            client.sendall(STATUS)
            assert receive(client)
            stop = threading.Event()

            def trickle() -> None:
                while not stop.wait(0.02):
                    try:
                        client.send(b" ")
                    except OSError:
                        return

            trickling = threading.Thread(target=trickle)
            trickling.start()
            assert hung_up(client) == b""
            stop.set()
            trickling.join()

    def test_a_reader_that_does_not_read_is_cut_off(self, path: Path, handler: Handler) -> None:
        limits = Limits(drain_seconds=0.2)
        with serving(path, handler, limits=limits), connect(path) as slow, connect(path) as quick:
            slow.sendall(encoded("io.crd.ListImages", parameters={"limit": 20}) * 2)
            hung_up_on = select.poll()
            hung_up_on.register(slow, 0)
            for _ in range(3):
                quick.sendall(STATUS)
                assert receive(quick)
            assert hung_up_on.poll(PATIENCE_SECONDS * 1000)
            assert len(hung_up(slow)) < 20_000_000

    def test_no_descriptors_left(self, path: Path, handler: Handler, monkeypatch: pytest.MonkeyPatch,
                                 caplog: pytest.LogCaptureFixture) -> None:
        monkeypatch.setattr("crd.api.server._NAP_SECONDS", 0.01)
        caplog.set_level(logging.WARNING)
        refusals = 3

        def accept(listener):
            nonlocal refusals
            if refusals:
                refusals -= 1
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return original(listener)

        original = socket.socket.accept
        monkeypatch.setattr(socket.socket, "accept", accept)
        with serving(path, handler):
            assert answers(path)
        assert caplog.text.count("Too many open files") == 3


def test_close_ends_connections_and_removes_the_file(path: Path, handler: Handler) -> None:
    with serving(path, handler):
        idle, waiting = connect(path), connect(path)
        idle.sendall(STATUS)
        assert receive(idle)
        waiting.sendall(encoded("io.crd.GetRequest", parameters={"number": 1, "wait": True}, more=True))
        assert handler.waiting.wait(PATIENCE_SECONDS)
    assert handler.cancelled.is_set()
    for client in (idle, waiting):
        assert hung_up(client) == b""
        client.close()
    assert not path.exists()


def test_close_leaves_the_file_of_another(path: Path, handler: Handler) -> None:
    with serving(path, handler):
        path.unlink()
        path.write_text("another's")
    assert path.read_text() == "another's"


def test_an_inherited_socket(path: Path, handler: Handler) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    with serving(listener.detach(), handler):
        assert answers(path)
    assert path.exists()
