"""What every test may ask for."""

from __future__ import annotations

import os
from itertools import count
from typing import TYPE_CHECKING

import pytest

from tests.lanes import Lanes
from tests.support.postgres import PostgresServer
from tests.support.seaweed import SeaweedServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from xdist.remote import Producer

_NUMBERS = count(1)


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    """A real S3 server for the whole session; who kills it starts it again."""
    with SeaweedServer(tmp_path_factory.mktemp("seaweed")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A real PostgreSQL server for the whole session."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def database_url(postgres: PostgresServer) -> str:
    """An empty database of its own."""
    return postgres.database(f"catalog{next(_NUMBERS)}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Lanes:
    """Say which tests may run side by side."""
    return Lanes(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs root where there is none; in CI that is a failure, not a skip."""
    if os.geteuid() == 0 or os.environ.get("CI"):
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason="needs root's capabilities"))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run in CI if anything was skipped there but for what lies beside some checkouts only."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    reports = reporter.stats.get("skipped", []) if reporter else []
    skipped = [report for report in reports if "beside" not in report.keywords]
    if os.environ.get("CI") and skipped and session.exitstatus == 0:
        for report in skipped:
            reporter.write_line(f"skipped in CI: {report.nodeid}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
