"""The seam between daemon and engine: real worker processes, and what happens when either side dies."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from crd.engine.api import USERSPACE, After, CheckpointOptions, CheckpointResult, RestartOptions
from crd.engine.channel import Channel
from crd.engine.client import Worker
from crd.engine.pool import WorkerPool
from crd.engine.stream import DescriptorSource
from crd.engine.worker import serve
from crd.errors import ImageTruncated, TargetNotFound, WorkerDied
from crd.image.reader import ImageReader
from tests.support.victims import PATIENCE_SECONDS, sleep, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

pytestmark = pytest.mark.root
NOBODY = 2**22 - 1


async def test_an_error_of_the_engine_comes_back_as_it_was(tmp_path: Path) -> None:
    async with WorkerPool() as pool, pool.lease() as worker:
        with open(os.devnull, "wb") as null:
            await worker.begin_checkpoint(NOBODY, null.fileno(), CheckpointOptions(), tmp_path / "crid")
        with pytest.raises(TargetNotFound) as refused:
            await worker.written()
        assert refused.value.details["pid"] == NOBODY
        assert not (tmp_path / "crid").exists()


async def test_a_checkpoint_in_two_steps(tmp_path: Path) -> None:
    with sleep(tmp_path, 60) as program:
        async with WorkerPool() as pool, pool.lease() as worker:
            with (tmp_path / "image").open("wb") as file:
                await worker.begin_checkpoint(program.pid, file.fileno(), CheckpointOptions(), tmp_path / "crid")
            written = await worker.written()
            assert isinstance(written, CheckpointResult)
            assert written.crid == 1
            assert written.image_bytes == (tmp_path / "image").stat().st_size
            program.assert_unharmed()
            await worker.commit()


async def test_an_image_is_whole_although_there_are_no_descriptors_left_for_notes() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    result = CheckpointResult(
        crid=1, pid=7, uid=0, comm="web", taken_at=0.0, engine="userspace", method="copy", method_reason="", tasks=1,
        threads=1, image_bytes=9, memory_bytes=9, stop_seconds=0.1, duration_seconds=0.1, header={},
        noted=((7, 1), (8, 2)))
    there = os.listdir("/proc/self/fd")
    worker = Worker(7, -1, ours)
    with theirs, open(os.devnull, "rb") as null:
        socket.send_fds(theirs, [msgspec.json.encode({"event": "written", "result": result})], [null.fileno()])
    assert (await worker.written()).noted == ((7, 1), (8, 2))
    assert worker.take_notes() == {}
    assert len(os.listdir("/proc/self/fd")) == len(there) - 1, "theirs is closed, and nothing else is there"
    ours.close()


async def test_a_restart_from_rubbish(tmp_path: Path) -> None:
    (tmp_path / "rubbish").write_bytes(b"\1\0\0\0\x28\0\0\0")
    async with WorkerPool() as pool, pool.lease() as worker:
        with (tmp_path / "rubbish").open("rb") as file:
            await worker.begin_restart(file.fileno(), RestartOptions())
        with pytest.raises(ImageTruncated):
            await worker.ready()


async def test_a_worker_that_is_killed_is_noticed_and_another_takes_its_place(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    async with WorkerPool() as pool:
        async with pool.lease() as worker:
            await worker.begin_restart(read_end, RestartOptions())
            os.kill(worker.pid, signal.SIGKILL)
            with pytest.raises(WorkerDied):
                await worker.ready()
        async with pool.lease() as other:
            assert other is not worker
    os.close(read_end)
    os.close(write_end)


async def test_no_worker_outlives_its_lease(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    async with WorkerPool() as pool:
        async with pool.lease() as worker:
            await worker.begin_restart(read_end, RestartOptions())
            pid = worker.pid
        until("end", lambda: not Path(f"/proc/{pid}").exists())
    os.close(read_end)
    os.close(write_end)


async def test_a_cancelled_job_ends_its_worker() -> None:
    read_end, write_end = os.pipe()
    seen: list[int] = []

    async def job(pool: WorkerPool) -> None:
        async with pool.lease() as worker:
            seen.append(worker.pid)
            await worker.begin_restart(read_end, RestartOptions())
            await worker.ready()

    async with WorkerPool() as pool:
        running = asyncio.create_task(job(pool))
        while not seen:
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        until("end", lambda: not Path(f"/proc/{seen[0]}").exists())
    os.close(read_end)
    os.close(write_end)


async def test_another_nursery_takes_the_place_of_one_that_has_ended() -> None:
    async with WorkerPool() as pool:
        assert pool._nursery
        first = pool._nursery.pid
        os.kill(first, signal.SIGKILL)
        async with pool.lease() as worker:
            assert pool._nursery.pid != first
            os.kill(worker.pid, 0)


async def test_many_workers_at_once() -> None:
    async with WorkerPool() as pool, AsyncExitStack() as stack:
        workers = await asyncio.gather(*(stack.enter_async_context(pool.lease()) for _ in range(10)))
        assert len({worker.pid for worker in workers}) == 10
        until("sessions of their own", lambda: all(os.getsid(worker.pid) == worker.pid for worker in workers))


@contextmanager
def nursery() -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen([sys.executable, "-m", "crd.engine.nursery", str(theirs.fileno())],
                                   pass_fds=[theirs.fileno()])
    with ours:
        yield process, ours
    assert process.wait(timeout=PATIENCE_SECONDS) == 0


def test_a_worker_whose_daemon_dies_lets_the_target_run(tmp_path: Path) -> None:
    with sleep(tmp_path, 60) as program:
        with nursery() as (_, control):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                socket.send_fds(control, [b"+"], [theirs.fileno()])
            pid, [pidfd], *_ = socket.recv_fds(control, 16, 1)
            with (tmp_path / "image").open("wb") as file:
                call = {"call": "checkpoint", "pid": program.pid, "options": {"after": "kill"}, "notes": None,
                        "crid_file": str(tmp_path / "crid")}
                socket.send_fds(ours, [msgspec.json.encode(call)], [file.fileno()])
            assert msgspec.json.decode(ours.recv(1 << 20))["event"] == "written"
            assert program.status()["TracerPid"] == pid.decode(), "a target to be killed waits for the commit"
        ours.close()
        assert select.select([pidfd], [], [], PATIENCE_SECONDS)[0]
        os.close(pidfd)
        until("end of the tracing", lambda: program.status()["TracerPid"] == "0")
        program.assert_unharmed()


def test_a_nursery_that_nobody_wants_ends_with_the_daemon() -> None:
    with nursery():
        pass


@contextmanager
def descriptors_left(n: int) -> Iterator[None]:
    """Be able to open only so many more."""
    before, filling = resource.getrlimit(resource.RLIMIT_NOFILE), [os.open(os.devnull, os.O_RDONLY)]
    while filling[-1] < max(map(int, os.listdir("/proc/self/fd"))) - 1:
        filling.append(os.open(os.devnull, os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(filling) + 1 + n, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in filling:
            os.close(fd)


async def test_no_descriptor_is_left_for_a_worker() -> None:
    async with WorkerPool() as pool:
        with descriptors_left(2), pytest.raises(WorkerDied, match="no descriptor"):
            async with pool.lease():
                pass
        async with pool.lease() as worker:
            assert worker.pid


async def test_a_listener_that_came_too_late_is_closed() -> None:
    sleeping = subprocess.Popen(["sleep", "60"])
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    worker = Worker(sleeping.pid, os.pidfd_open(sleeping.pid), ours)
    listener, other_end = os.pipe2(os.O_NONBLOCK)

    def answer_and_end() -> None:
        with theirs:
            theirs.recv(1 << 16)
            socket.send_fds(theirs, [msgspec.json.encode({"event": "fetched", "result": None})], [other_end])
        os.close(other_end)

    answering = asyncio.create_task(asyncio.to_thread(answer_and_end))
    with pytest.raises(WorkerDied):
        await worker.fetch_listener(1, 3)
    await answering
    await worker.end()
    sleeping.wait()
    assert os.read(listener, 1) == b"", "somebody still holds the other end"
    os.close(listener)


OPTIONS = CheckpointOptions()


@asynccontextmanager
async def checkpointed(lease: AbstractAsyncContextManager[Worker], pid: int, home: Path,
                       options: CheckpointOptions = OPTIONS) -> AsyncIterator[Worker]:
    """Have an image of a process taken, but for the last word."""
    async with lease as worker:
        with (home / "image").open("wb") as file:
            await worker.begin_checkpoint(pid, file.fileno(), options, home / "crid")
        await worker.written()
        yield worker


async def save(pool: WorkerPool, pid: int, home: Path, options: CheckpointOptions = OPTIONS) -> int:
    """Have an image of a process taken, and return the pid of the worker."""
    async with checkpointed(pool.lease_for_checkpoint(), pid, home, options) as worker:
        await worker.commit()
        return worker.pid


async def test_a_worker_takes_one_image_after_the_other_but_not_for_ever(tmp_path: Path) -> None:
    with sleep(tmp_path, 60) as program:
        async with WorkerPool() as pool:
            pids = [await save(pool, program.pid, tmp_path) for _ in range(17)]
        assert [*Counter(pids).values()] == [16, 1]
        until("end with the pool", lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
        program.assert_unharmed()


async def test_images_by_a_used_worker_are_as_those_by_a_new_one(tmp_path: Path) -> None:
    def records() -> list[tuple[str, int]]:
        with (tmp_path / "image").open("rb") as image:
            return [(record.record_name, len(record.encode()))
                    for record in ImageReader(DescriptorSource(image.fileno()))]

    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    with sleep(tmp_path / "one", 60) as one, sleep(tmp_path / "other", 60) as other:
        async with WorkerPool() as pool:
            used = await save(pool, one.pid, tmp_path)
            for program in (other, one):
                assert await save(pool, program.pid, tmp_path) == used
                by_used = records()
                async with checkpointed(pool.lease(), program.pid, tmp_path) as fresh:
                    assert fresh.pid != used
                    await fresh.commit()
                assert by_used == records()


async def test_an_error_a_cancellation_a_call_left_alone_and_a_stop_are_a_workers_last(tmp_path: Path) -> None:
    with sleep(tmp_path, 60) as program:
        async with WorkerPool() as pool:
            pids = [await save(pool, program.pid, tmp_path)]
            with pytest.raises(TargetNotFound):
                await save(pool, NOBODY, tmp_path)
            pids.append(await save(pool, program.pid, tmp_path))
            with pytest.raises(asyncio.CancelledError):
                async with checkpointed(pool.lease_for_checkpoint(), program.pid, tmp_path):
                    raise asyncio.CancelledError
            pids.append(await save(pool, program.pid, tmp_path))
            async with pool.lease_for_checkpoint() as worker:
                with open(os.devnull, "wb") as null:
                    await worker.begin_checkpoint(program.pid, null.fileno(), OPTIONS, tmp_path / "crid")
            pids.append(await save(pool, program.pid, tmp_path))
            assert await save(pool, program.pid, tmp_path, CheckpointOptions(after=After.STOP)) == pids[-1]
            os.kill(program.pid, signal.SIGCONT)
            pids.append(await save(pool, program.pid, tmp_path))
        assert len({*pids}) == 5
        program.assert_unharmed()


async def test_a_worker_that_was_killed_at_rest_is_missed_by_nobody(tmp_path: Path) -> None:
    with sleep(tmp_path, 60) as program:
        async with WorkerPool() as pool:
            resting = await save(pool, program.pid, tmp_path)
            os.kill(resting, signal.SIGKILL)
            until("end", lambda: not Path(f"/proc/{resting}").exists())
            assert await save(pool, program.pid, tmp_path) != resting


async def test_a_worker_does_not_rest_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crd.engine.pool._REST_SECONDS", 0.01)
    with sleep(tmp_path, 60) as program:
        async with WorkerPool() as pool:
            resting = await save(pool, program.pid, tmp_path)
            while Path(f"/proc/{resting}").exists():
                await asyncio.sleep(0.01)


RESULT = CheckpointResult(crid=1, pid=1, uid=0, comm="", taken_at=0, engine=USERSPACE, method="", method_reason="",
                          tasks=1, threads=1, image_bytes=0, memory_bytes=0, stop_seconds=0, duration_seconds=0,
                          header={})


@pytest.mark.parametrize(("leave", "calls"), [(lambda: None, 2), (lambda: os.open(os.devnull, os.O_RDONLY), 1)])
def test_a_worker_in_which_something_is_left_ends(leave: Callable[[], object], calls: int) -> None:
    def call(_message: object, _fds: object, _channel: object) -> CheckpointResult:
        leave()
        return RESULT

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if not pid:
        ours.close()
        serve(Channel(theirs.detach()), {"checkpoint": call})
        os._exit(0)
    theirs.close()
    with ours:
        for _ in range(calls):
            ours.send(msgspec.json.encode({"call": "checkpoint", "options": {"after": "run"}}))
            answer = msgspec.json.decode(ours.recv(1 << 20))
            assert answer["result"]["crid"] == 1
            assert answer.get("again", False) is (calls == 2)
        if calls == 1:
            assert ours.recv(1) == b"", "it takes another call"
    os.waitpid(pid, 0)
