"""The queue of restarts: never twice, never lost, whenever the daemon dies."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crd.catalog import requests as requests_module
from crd.catalog.catalog import Catalog
from crd.errors import CatalogError, PidInUse, QueueFull, RequestNotCancellable, RequestNotFound
from crd.ids import Crid
from tests.unit.catalog.test_catalog import enter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crd.catalog.rows import Request

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
BOOT = "boot"


async def ask(catalog: Catalog) -> Request:
    return await catalog.requests.add(Crid(1), pids="original", files="keep", uid=0, now=NOW)


@pytest.fixture
async def queue(catalog: Catalog) -> Catalog:
    await enter(catalog, 1)
    return catalog


async def test_oldest_first_and_once(queue: Catalog) -> None:
    numbers = [(await ask(queue)).number for _ in range(3)]
    claimed = [request.number for _ in range(3) if (request := await queue.requests.claim(NOW))]
    assert claimed == numbers
    assert await queue.requests.claim(NOW) is None


async def test_one_for_the_next_boot_waits_for_it_and_comes_once(queue: Catalog) -> None:
    later = await queue.requests.add(Crid(1), pids="any", files="keep", uid=0, now=NOW, boot_id=BOOT)
    now = await ask(queue)
    claimed = [await queue.requests.claim(NOW, BOOT) for _ in range(2)]
    assert [request and request.number for request in claimed] == [now.number, None]
    assert (await queue.requests.queue())[0] == 1
    found = await queue.requests.claim(NOW, "next")
    assert found
    assert (found.number, found.boot_id) == (later.number, BOOT)
    assert await queue.requests.claim(NOW, "after that") is None


async def test_what_targets_were_restarted_as_in_this_boot(queue: Catalog) -> None:
    for pid, boot_id in ((41, BOOT), (42, BOOT), (43, "before")):
        number = (await ask(queue)).number
        await queue.requests.claim(NOW)
        await queue.requests.releasing(number, pid, 7, boot_id)
        await queue.requests.done(number, NOW)
    assert await queue.requests.roots(BOOT) == {"web": (42, 7)}
    assert await queue.requests.roots("next") == {}
    assert await queue.requests.prune(NOW + timedelta(days=99), BOOT) == 2
    assert await queue.requests.roots(BOOT) == {"web": (42, 7)}, "it may run for years"
    assert len(await queue.requests.list()) < number


async def test_the_ways_of_a_request(queue: Catalog) -> None:
    done, failed, cancelled = [(await ask(queue)).number for _ in range(3)]
    assert (await queue.requests.cancel(cancelled, NOW)).state == "cancelled"
    await queue.requests.claim(NOW)
    await queue.requests.releasing(done, 42, 7, BOOT)
    await queue.requests.done(done, NOW)
    await queue.requests.claim(NOW)
    await queue.requests.failed(failed, NOW, PidInUse("pid 42 is in use", hint="End it."))
    assert (await queue.requests.get(done)).root_pid == 42
    assert (await queue.requests.get(failed)).error == "restart.pid-in-use"
    for number in (done, failed, cancelled):
        with pytest.raises(RequestNotCancellable):
            await queue.requests.cancel(number, NOW)
    with pytest.raises(RequestNotFound):
        await queue.requests.get(99)
    assert await queue.requests.queue() == (0, 0, None)
    assert len(await queue.requests.list(uid=1)) == 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.sampled_from(["ask", "claim", "release", "let go", "finish", "crash"]), max_size=25))
async def test_no_request_runs_twice_or_is_lost(steps: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Carries out requests as the daemon does, and crashes between any two steps."""
    home = tmp_path_factory.mktemp("queue")
    runs: dict[int, int] = {}
    asked: list[int] = []
    current: int | None = None
    stage = ""
    catalog = await Catalog.open(f"sqlite:///{home}/catalog.db", "here")
    async with catalog:
        await enter(catalog, 1)
        requests = catalog.requests
        for step in [*steps, "crash"]:
            if step == "ask":
                asked.append((await ask(catalog)).number)
            elif step == "claim" and current is None and (claimed := await requests.claim(NOW)):
                current, stage = claimed.number, "running"
            elif step == "release" and stage == "running" and current:
                await requests.releasing(current, current, current, BOOT)
                stage = "releasing"
            elif step == "let go" and stage == "releasing" and current:
                runs[current] = runs.get(current, 0) + 1
                stage = "let go"
            elif step == "finish" and stage == "let go" and current:
                await requests.done(current, NOW)
                current, stage = None, ""
            elif step == "crash":
                await requests.recover(NOW, BOOT, lambda pid, start: pid == start and pid in runs)
                current, stage = None, ""
        for number in asked:
            request = await requests.get(number)
            assert request.state in {"queued", "done", "failed"}
            assert runs.get(number, 0) == (request.state == "done")


async def test_pids_of_another_boot_mean_nothing(queue: Catalog) -> None:
    request = await ask(queue)
    await queue.requests.claim(NOW)
    await queue.requests.releasing(request.number, 42, 7, "an earlier boot")
    await queue.requests.recover(NOW, BOOT, lambda _pid, _start: True)
    assert (await queue.requests.get(request.number)).state == "failed"


WRITER = """
    import asyncio, sys
    from datetime import UTC, datetime
    from crd.catalog.catalog import Catalog
    from crd.ids import Crid

    async def main():
        async with await Catalog.open(sys.argv[1], "here") as catalog:
            while True:
                request = await catalog.requests.add(Crid(1), pids="original", files="keep", uid=0,
                                                     now=datetime.now(UTC))
                print(request.number, flush=True)

    asyncio.run(main())
"""


async def test_what_was_accepted_survives_kill_9(queue: Catalog, catalog_url: str) -> None:
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(WRITER), catalog_url],
                          stdout=subprocess.PIPE) as writer:
        assert writer.stdout
        accepted = [int(writer.stdout.readline()) for _ in range(40)]
        writer.send_signal(signal.SIGKILL)
        accepted += [int(line) for line in writer.stdout.read().split(b"\n")[:-1]]
    for number in accepted:
        assert (await queue.requests.get(number)).state == "queued"


async def test_no_step_is_taken_out_of_turn(queue: Catalog) -> None:
    request = await ask(queue)
    requests, number = queue.requests, request.number
    error = PidInUse("pid 42 is in use")
    for step in (requests.releasing(number, 1, 1, BOOT), requests.done(number, NOW),
                 requests.failed(number, NOW, error)):
        with pytest.raises(CatalogError):
            await step
    assert await requests.get(number) == request
    await requests.claim(NOW)
    with pytest.raises(CatalogError):
        await requests.done(number, NOW)
    await requests.failed(number, NOW, error)
    for step in (requests.releasing(number, 1, 1, BOOT), requests.done(number, NOW),
                 requests.failed(number, NOW, error)):
        with pytest.raises(CatalogError):
            await step
    with pytest.raises(RequestNotFound):
        await requests.done(99, NOW)


async def test_what_may_have_run_is_not_said_to_have_failed_to(queue: Catalog) -> None:
    running, releasing = [(await ask(queue)).number for _ in range(2)]
    await queue.requests.claim(NOW)
    await queue.requests.claim(NOW)
    await queue.requests.releasing(releasing, 42, 7, BOOT)
    assert await queue.requests.recover(NOW, BOOT, lambda _pid, _start: False) == ["failed", "failed"]
    assert (await queue.requests.get(running)).hint == "Ask again."
    assert "may have run" in str((await queue.requests.get(releasing)).hint)


async def test_claims_at_the_same_time_get_different_requests(queue: Catalog) -> None:
    numbers = {(await ask(queue)).number for _ in range(12)}
    claimed = await asyncio.gather(*(queue.requests.claim(NOW) for _ in range(20)))
    got = [request.number for request in claimed if request]
    assert len(got) == 12
    assert set(got) == numbers


async def test_a_request_for_an_image_that_never_was_is_refused(queue: Catalog) -> None:
    with pytest.raises(CatalogError):
        await queue.requests.add(Crid(5), pids="new", files="keep", uid=0, now=NOW)
    assert await queue.requests.list() == []


async def test_the_queue_has_an_end_for_a_user_and_for_all(queue: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests_module, "QUEUED_MAX", 5)
    monkeypatch.setattr(requests_module, "QUEUED_MAX_OF_USER", 2)

    async def ask_as(uid: int, gids: list[int] | None) -> Request:
        return await queue.requests.add(Crid(1), pids="new", files="keep", uid=uid, now=NOW, gids=gids)

    first, _ = await ask_as(7, [8, 7]), await ask_as(7, [7])
    assert first.gids == [7, 8]
    with pytest.raises(QueueFull, match="of your restarts"):
        await ask_as(7, [7])
    assert (await ask_as(6, None)).gids is None
    await ask_as(9, [])
    await ask_as(0, None)
    with pytest.raises(QueueFull):
        await ask_as(0, None)
    await queue.requests.claim(NOW)
    assert (await ask_as(7, [7])).state == "queued", "what was claimed no longer counts"
    assert len(await queue.requests.list()) == 6


async def test_what_ended_long_ago_is_dropped_and_nothing_else(queue: Catalog) -> None:
    await enter(queue, 2)
    for number, crid in enumerate((1, 1, 1, 2, 2), 1):
        await queue.requests.add(Crid(crid), pids="original", files="keep", uid=0, now=NOW)
        if number not in {3, 5}:
            await queue.requests.cancel(number, NOW + timedelta(hours=number))
    assert (await queue.requests.claim(NOW - timedelta(days=99))).number == 3  # type: ignore[union-attr]
    assert await queue.requests.prune(NOW + timedelta(hours=2), BOOT) == 1
    assert [request.number for request in await queue.requests.list()] == [5, 4, 3, 2]
    assert await queue.requests.prune(NOW + timedelta(days=1), BOOT) == 2
    assert [request.number for request in await queue.requests.list()] == [5, 3], "these have not ended"


async def test_with_a_request_goes_what_was_kept_of_a_forgotten_image_for_it(queue: Catalog,
                                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crd.catalog.requests._PRUNED_AT_ONCE", 2)
    for crid in (2, 3, 4):
        await enter(queue, crid)
    for number, crid in enumerate((1, 1, 2, 2, 3), 1):
        await queue.requests.add(Crid(crid), pids="original", files="keep", uid=0, now=NOW)
        await queue.requests.cancel(number, NOW + timedelta(days=1 + (number == 4)))
    for crid in (1, 2):
        await queue.images.forget(Crid(crid))

    async def forgotten() -> Sequence[int]:
        for crid in (1, 2):
            await queue.images.bury(Crid(crid))
        return await queue.images.forgotten()

    assert await forgotten() == [1, 2]
    assert await queue.requests.prune(NOW + timedelta(days=1, hours=1), BOOT) == 4
    assert await forgotten() == [2], "it has another"
    assert await queue.requests.prune(NOW + timedelta(days=9), BOOT) == 1
    assert await forgotten() == []
    assert await queue.requests.list() == []
