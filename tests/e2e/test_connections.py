"""What becomes of connections of TCP to others is asked for by crctl, and kept with the request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.daemon import Refused, RunningDaemon
from tests.support.tcp_peer import Peer
from tests.support.victims import Victim, until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.root


def test_connections_go_on_or_are_over_as_the_request_says(tmp_path: Path) -> None:
    with (Peer("127.0.0.1") as peer, Victim("peers", tmp_path, peer.address, peer.port) as victim,
          RunningDaemon(tmp_path) as daemon):
        until("the game", lambda: peer.played > 3)
        image = str(daemon.crctl("checkpoint", "--pid", str(victim.pid), "--kill")["crid"])
        victim.wait_gone()

        def planned(wish: str) -> set[str]:
            plan = daemon.crctl("restart", image, "--tcp", wish, "--plan")
            return {made["how"].rpartition(", ")[2] for made in plan["makes"] if made["kind"] == "TCP port"}

        assert planned("close") == {"is over"}
        assert planned("established") == {"goes on"}
        request = daemon.crctl("restart", image, "--tcp", "established", "--wait")
        assert (request["state"], request["tcp"]) == ("done", "established")
        before = peer.played
        until("the game to go on", lambda: peer.played > before + 3)
        victim.kill()
        with pytest.raises(Refused, match="has not been held"):
            daemon.crctl("restart", image, "--tcp", "established", "--wait")
        assert daemon.crctl("restart", image, "--tcp", "close", "--wait")["state"] == "done"
        victim.file("over").touch()
        victim.verify()
