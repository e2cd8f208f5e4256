"""Three hosts with one catalog and one bucket: real daemons in network namespaces, a real PostgreSQL and S3 server."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from sqlalchemy.engine import make_url

from tests.support.daemon import Refused, RunningDaemon, eventually
from tests.support.network import Network, relay
from tests.support.postgres import PostgresServer
from tests.support.workload import PROGRAM, CountingProgram

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.seaweed import SeaweedServer

pytestmark = pytest.mark.root

HOSTS = ("one", "two", "three")
CONFIG = """
[catalog]
url = "{url}"
host = "{host}"
[archive]
store = "s3"
[s3]
bucket = "{bucket}"
prefix = "{prefix}"
endpoint = "{endpoint}"
region = "us-east-1"
credentials = "{credentials}"
writer = "{host}"
"""


class Fleet:
    """Daemons by host, each with a program to look after."""

    def __init__(self, network: Network, daemons: dict[str, RunningDaemon],
                 programs: dict[str, CountingProgram]) -> None:
        self.network = network
        self.daemons = daemons
        self.programs = programs

    def __getitem__(self, host: str) -> RunningDaemon:
        return self.daemons[host]

    def take(self, host: str) -> int:
        crid: int = self[host].crctl("checkpoint", "--pid", str(self.programs[host].pid))["crid"]
        return crid


@pytest.fixture
def fleet(tmp_path: Path, postgres: PostgresServer, database_url: str, seaweed: SeaweedServer) -> Iterator[Fleet]:
    seaweed.location("images", tmp_path.name)
    with ExitStack() as stack:
        network = stack.enter_context(Network(HOSTS))
        database = stack.enter_context(relay(network.address, str(postgres.home / ".s.PGSQL.5432")))
        bucket = stack.enter_context(relay(network.address, ("127.0.0.1", seaweed.port)))
        name = make_url(database_url).database
        daemons, programs = {}, {}
        for host in HOSTS:
            home = tmp_path / host
            home.mkdir()
            programs[host] = stack.enter_context(CountingProgram(
                home, command=[*network.on(host), sys.executable, "-S", "-c", PROGRAM, "0"]))
            daemons[host] = stack.enter_context(RunningDaemon(home, CONFIG.format(
                url=f"postgresql+asyncpg://crd@{network.address}:{database}/{name}", host=host, bucket="images",
                prefix=tmp_path.name, endpoint=f"http://{network.address}:{bucket}",
                credentials=seaweed.credentials), network.on(host)))
        yield Fleet(network, daemons, programs)


def test_a_fleet(fleet: Fleet) -> None:
    assert [fleet.take(host) for host in HOSTS] == [1, 1, 1], "each host counts for itself"
    everywhere = fleet["one"].crctl("images")
    assert sorted(image["host"] for image in everywhere) == sorted(HOSTS)
    assert [host["name"] for host in fleet["two"].crctl("status")["hosts"]] == sorted(HOSTS)

    shown = fleet["one"].crctl("show", "two/1")
    assert (shown["host"], shown["pid"]) == ("two", fleet.programs["two"].pid)
    for verb in ("verify", "pin", "forget"):
        with pytest.raises(Refused) as elsewhere:
            fleet["one"].crctl(verb, "two/1")
        assert (elsewhere.value.status, elsewhere.value.error["error"]) == (13, "catalog.image-elsewhere")

    program = fleet.programs["two"]
    program.kill()
    lines = len(program.counts())
    request = fleet["one"].crctl("restart", "two/1", "--wait")
    assert (request["state"], request["host"], request["root_pid"]) == ("done", "two", program.pid)
    program.assert_unharmed()
    program.assert_counted_without_gap_since(lines)
    for host in ("one", "three"):
        fleet.programs[host].assert_unharmed()


def test_a_host_that_dies_keeps_nobody_else_waiting_and_finds_its_requests_again(fleet: Fleet) -> None:
    for host in HOSTS:
        fleet.take(host)
    program = fleet.programs["two"]
    program.kill()
    lines = len(program.counts())
    fleet["three"].crctl("checkpoint", "--pid", str(fleet.programs["three"].pid), "--no-wait")
    fleet["two"].stop(signal.SIGKILL)
    waiting = fleet["one"].crctl("restart", "two/1")
    assert waiting["state"] == "queued"
    fleet.take("one")
    second = fleet["three"].crctl("restart", "1", "--new-pids", "--wait")
    assert second["state"] == "done"
    os.kill(second["root_pid"], signal.SIGKILL)
    assert fleet["one"].crctl("request", "show", str(waiting["number"]))["state"] == "queued"
    fleet["two"].start()
    eventually("the request to be carried out",
               lambda: fleet["one"].crctl("request", "show", str(waiting["number"]))["state"] == "done")
    program.assert_unharmed()
    program.assert_counted_without_gap_since(lines)


@pytest.mark.timeout(600)
def test_a_host_that_is_cut_off_says_so_and_goes_on_when_it_is_joined_again(fleet: Fleet) -> None:
    for host in HOSTS:
        fleet.take(host)
    program = fleet.programs["three"]
    fleet.network.cut("three")
    with pytest.raises(Refused) as cut_off:
        fleet.take("three")
    assert cut_off.value.error["error"] == "catalog.unavailable"
    program.assert_unharmed()
    assert fleet.take("one") == 2
    waiting = fleet["one"].crctl("restart", "three/1", "--new-pids")["number"]
    eventually("it to be without the catalog", lambda: "catalog.away" in fleet["three"].log, seconds=180)
    fleet.network.join("three")
    eventually("the request to be carried out", lambda: fleet["one"].crctl("request", "show", str(waiting))["state"]
               in {"done", "failed"}, seconds=180)
    request = fleet["one"].crctl("request", "show", str(waiting))
    assert request["state"] == "done", request
    os.kill(request["root_pid"], signal.SIGKILL)
    assert fleet.take("three") > 1
    program.assert_unharmed()


def test_a_second_daemon_of_a_host_is_refused(fleet: Fleet, tmp_path: Path) -> None:
    home = tmp_path / "again"
    home.mkdir()
    again = RunningDaemon(home, fleet["one"].config.read_text().replace('writer = "one"', 'writer = "again"'))
    with pytest.raises(AssertionError, match="another daemon of host one uses this catalog"):
        again.start()
    fleet.take("one")


def test_the_catalogs_server_goes_and_comes_back(tmp_path: Path) -> None:
    with PostgresServer() as server, CountingProgram(tmp_path) as program, RunningDaemon(
            tmp_path, f'[catalog]\nurl = "{server.database("catalog")}"\nhost = "one"\n') as daemon:
        daemon.crctl("checkpoint", "--pid", str(program.pid))
        server.stop()
        with pytest.raises(Refused) as away:
            daemon.crctl("checkpoint", "--pid", str(program.pid))
        assert away.value.error["error"] == "catalog.unavailable"
        program.assert_unharmed()
        server.start()
        eventually("an image", lambda: daemon.run_crctl("checkpoint", "--pid", str(program.pid)).returncode == 0)
        assert [image["crid"] for image in daemon.crctl("images")][-1] == 1
        program.assert_unharmed()
