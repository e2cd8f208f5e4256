"""The kernel engine with a stand-in for a Linux-CR kernel: registers, the freezer, trees, failures."""

from __future__ import annotations

import errno
import io
import os
import signal
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from crd.engine import api
from crd.engine.api import CheckpointOptions
from crd.engine.crid import CridCounter
from crd.engine.kernel import freezer
from crd.engine.kernel.calls import KernelCalls
from crd.engine.kernel.proof import RunningKernel
from crd.engine.kernel.table import named
from crd.engine.pool import WorkerPool
from crd.errors import (
    EngineError,
    FeatureMissing,
    ImageCorrupt,
    ImageVersionUnsupported,
    RestartUnsupported,
    TargetBusy,
    TargetUnsupported,
)
from crd.image.front import with_kernel
from crd.image.generations import PREFIX_BYTES
from crd.image.inspect import inspect
from tests.support.linux_cr import GenA, GenB, GenC, GenD
from tests.support.standin_kernel import StandInKernel
from tests.support.victims import sleep, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.victims import Program

ROOT = Path("/sys/fs/cgroup/freezer")
pytestmark = [pytest.mark.root, pytest.mark.beside, pytest.mark.skipif(
    not (ROOT / "tasks").exists(), reason="the freezer cgroup is not at /sys/fs/cgroup/freezer")]
V14 = "387/388/3"
NO_DESCRIPTOR = (1 << 64) - 1


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    with sleep(tmp_path, 60) as program:
        yield program


@pytest.fixture
def take(tmp_path: Path):
    def take(kernel: StandInKernel, pid: int, commit=None, **options):
        def call() -> api.CheckpointResult:
            with (tmp_path / "image").open("wb") as file:
                return api.checkpoint(pid, file.fileno(), crids=CridCounter(tmp_path / "crid"), commit=commit,
                                      options=api.CheckpointOptions(engine="kernel", linux_cr=_told(kernel), **options))
        return kernel.run(call)

    return take


def standing_in(linux_cr: str = V14, **answers) -> StandInKernel:
    return StandInKernel(named(linux_cr, "x86_64"), **answers)


def _told(kernel: StandInKernel) -> str:
    return kernel.numbers.release


@contextmanager
def restarted(kernel: StandInKernel, image: bytes, path: Path, confirm=None,
              **options) -> Iterator[api.RestartResult]:
    path.write_bytes(image)

    def call() -> api.RestartResult:
        with path.open("rb") as file:
            return api.restart(file.fileno(), options=api.RestartOptions(linux_cr=_told(kernel), **options),
                               confirm=confirm)

    result = kernel.run(call)
    try:
        yield result
    finally:
        for pid in result.pids.values():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def no_group_is_left() -> bool:
    return not list(ROOT.glob("crd-*"))


class TestRegisters:
    def test_three_arguments(self, program: Program, take) -> None:
        kernel = standing_in()
        take(kernel, program.pid)
        [call] = kernel.seen
        assert call.number == 387
        assert (call.words[0], call.words[2:]) == (program.pid, (0, 0, 0, 0))

    def test_four_arguments_and_the_flag_for_a_part_of_what_runs(self, program: Program, take) -> None:
        kernel = standing_in("3.0")
        take(kernel, program.pid)
        [call] = kernel.seen
        assert call.number == 313
        assert (call.words[0], call.words[2:]) == (program.pid, (1, NO_DESCRIPTOR, 0, 0))

    def test_the_kernel_gets_the_pipe_itself(self, program: Program) -> None:
        kernel = standing_in()
        read_end, write_end = os.pipe()
        inodes = []
        kernel.at_checkpoint = lambda _: inodes.append(
            os.stat(f"/proc/{kernel.seen[-1].tid}/fd/{kernel.seen[-1].int32(1)}").st_ino)
        result = kernel.run(lambda: api.checkpoint(
            program.pid, write_end, crids=CridCounter(program.directory / "crid"),
            options=api.CheckpointOptions(engine="kernel", linux_cr=V14)))
        os.close(write_end)
        with open(read_end, "rb") as image:
            assert inodes == [os.fstat(image.fileno()).st_ino]
            assert image.read() == kernel.image(program.pid)
        assert (result.image_bytes, result.header, result.engine) == (None, {}, "kernel")

    def test_a_task_asks_for_its_own_image(self, tmp_path: Path) -> None:
        kernel = standing_in()

        def itself() -> tuple[int, int]:
            with (tmp_path / "image").open("wb") as file:
                return KernelCalls(kernel.numbers).checkpoint(0, file.fileno()), os.getpid()

        crid, pid = kernel.run(itself)
        assert (crid, kernel.seen[0].words[0]) == (1, pid)
        kernel.restored = True
        assert kernel.run(itself)[0] == 0

    def test_restart(self, tmp_path: Path) -> None:
        for release, flags in ((V14, (0, 0)), ("3.0", (1, NO_DESCRIPTOR))):
            kernel = standing_in(release)
            with restarted(kernel, kernel.image(100_000), tmp_path / "image") as result:
                [call] = kernel.seen
                assert (call.number, call.words[0]) == (kernel.numbers.restart, result.root_pid)
                assert call.words[2:] == (*flags, 0, 0)


class TestFreezer:
    def test_the_tree_is_frozen_while_the_kernel_looks_and_runs_afterwards(self, tmp_path: Path, take) -> None:
        kernel, seen = standing_in(), []
        with sleep(tmp_path, 60) as program:
            kernel.at_checkpoint = lambda pid: seen.append(Path(f"/proc/{pid}/cgroup").read_text())
            result = take(kernel, program.pid)
            assert "crd-" in seen[0]
            assert (result.tasks, result.threads, result.comm) == (1, 1, "sleep")
            assert result.stop_seconds <= result.duration_seconds
            program.assert_unharmed()
        assert no_group_is_left()

    @pytest.mark.parametrize(("number", "error"), [
        (errno.EBUSY, TargetBusy), (errno.ENOSYS, TargetUnsupported), (errno.EBADF, TargetUnsupported),
        (errno.EIO, EngineError), (errno.EINVAL, EngineError)])
    def test_it_is_thawed_when_the_kernel_refuses(self, program: Program, take, number: int, error: type) -> None:
        with pytest.raises(error) as raised:
            take(standing_in(refuse=number), program.pid)
        assert raised.value.details["errno"] == number
        program.assert_unharmed()
        assert no_group_is_left()

    def test_it_is_thawed_when_the_worker_is_killed_in_the_call(self, program: Program, tmp_path: Path) -> None:
        """The kernel has it and the worker dies: the guardian thaws."""
        read_end, write_end = os.pipe()
        worker = os.fork()
        if not worker:
            with freezer.frozen(program.pid, ROOT):
                os.write(write_end, b"+")
                signal.pause()
        os.read(read_end, 1)
        assert not no_group_is_left()
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        until("thaw", no_group_is_left)
        program.assert_unharmed()

    def test_who_comes_next_thaws_what_worker_and_guardian_left(self, program: Program) -> None:
        group = ROOT / "crd-1-1"
        group.mkdir()
        (group / "tasks").write_text(str(program.pid))
        (group / "freezer.state").write_text("FROZEN")
        freezer.sweep(ROOT)
        assert no_group_is_left()
        program.assert_unharmed()

    async def test_a_daemon_that_begins_has_a_worker_thaw_it(self, program: Program) -> None:
        """It could not do so itself: ProtectControlGroups= of crd.service."""
        group = ROOT / "crd-1-1"
        group.mkdir()
        (group / "tasks").write_text(str(program.pid))
        (group / "freezer.state").write_text("FROZEN")
        async with WorkerPool() as pool, pool.lease() as worker:
            assert await worker.serving(CheckpointOptions(linux_cr="387/388/3")) == "kernel"
        assert no_group_is_left()
        async with WorkerPool() as pool, pool.lease() as worker:
            assert await worker.serving(CheckpointOptions(engine="userspace")) == "userspace"
        program.assert_unharmed()

    def test_tasks_come_back_into_their_own_groups(self, program: Program) -> None:
        home = ROOT / "home-of-a-test"
        home.mkdir()
        try:
            (home / "tasks").write_text(str(program.pid))
            with freezer.frozen(program.pid, ROOT) as family:
                assert family == {program.pid}
            assert (home / "tasks").read_text().split() == [str(program.pid)]
        finally:
            (ROOT / "tasks").write_text(str(program.pid))
            home.rmdir()

    @pytest.mark.parametrize(("after", "last"), [(api.After.KILL, "Z"), (api.After.STOP, "T")])
    def test_killed_or_stopped_once_it_is_safe(self, program: Program, take, after: api.After, last: str) -> None:
        take(standing_in(), program.pid, commit=lambda _: None, after=after)
        until("the end asked for", lambda: state(program.pid) == last)
        assert no_group_is_left()

    def test_it_lives_if_the_image_is_not_safe(self, program: Program, take) -> None:
        def fail(_: api.CheckpointResult) -> None:
            raise EngineError("called off")

        with pytest.raises(EngineError, match="called off"):
            take(standing_in(), program.pid, commit=fail, after=api.After.KILL)
        program.assert_unharmed()


class TestTrees:
    def test_every_task_calls_with_the_number_of_the_root(self, tmp_path: Path) -> None:
        kernel = standing_in()
        with restarted(kernel, kernel.image(100_000, 100_001, 100_002), tmp_path / "image") as result:
            assert [call.words[0] for call in kernel.seen] == [result.root_pid] * 3
            assert result.pids[100_000] == result.root_pid
            assert {call.tid for call in kernel.seen} == set(result.pids.values())
            for pid in (result.pids[100_001], result.pids[100_002]):
                assert int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == result.root_pid
            until("descriptors closed", lambda: not os.listdir(f"/proc/{result.root_pid}/fd"))

    def test_nothing_runs_before_it_is_confirmed_and_nothing_is_left_if_it_is_not(self, tmp_path: Path) -> None:
        kernel = standing_in()
        ready = tmp_path / "ready"

        def refuse(result: api.RestartResult) -> None:
            ready.write_text(" ".join(map(str, result.pids.values())))
            raise EngineError("called off")

        with pytest.raises(EngineError, match="called off"), restarted(
                kernel, kernel.image(100_000, 100_001), tmp_path / "image", refuse):
            pass
        assert not kernel.seen
        until("end", lambda: not any(Path(f"/proc/{pid}").exists() for pid in ready.read_text().split()))

    @pytest.mark.parametrize(("answers", "error"), [
        ({"refuse": errno.EINVAL}, ImageCorrupt), ({"names_only": True}, RestartUnsupported)])
    def test_nothing_is_left_if_the_kernel_refuses(self, tmp_path: Path, answers: dict, error: type) -> None:
        kernel = standing_in(**answers)
        with pytest.raises(error), restarted(kernel, kernel.image(100_000, 100_001), tmp_path / "image"):
            pass
        until("end", lambda: not any(Path(f"/proc/{call.tid}").exists() for call in kernel.seen))

    def test_images_of_another_kernel_are_refused_before_any_call(self, tmp_path: Path) -> None:
        kernel = standing_in()
        image = (Path(__file__).parents[1] / "golden" / "images" / "v13-ext-frozen.img").read_bytes()
        with (pytest.raises(ImageVersionUnsupported, match="written on i686: this one is x86_64"),
              restarted(kernel, image, tmp_path / "image")):
            pass
        assert not kernel.seen


class TestVersions:
    def test_an_image_of_another_version_is_refused_unless_it_is_forced(self, tmp_path: Path) -> None:
        kernel = standing_in()
        ours = kernel.image(100_000, 100_001)
        theirs = with_kernel(ours[:PREFIX_BYTES], "2.6.28") + ours[PREFIX_BYTES:]
        with (pytest.raises(ImageVersionUnsupported, match=r"kernel 2\.6\.28") as raised,
              restarted(kernel, theirs, tmp_path / "image")):
            pass
        assert "--force-version" in raised.value.hint
        assert not kernel.seen
        with restarted(kernel, theirs, tmp_path / "image", force_version=True):
            array = slice(kernel.image_read.index(b"\x65\0\0\0\x08\0\0\0") + 16, None)
            assert kernel.image_read[:array.start] == ours[:array.start]
            assert kernel.image_read[array][32:] == ours[array][32:]

    @pytest.mark.parametrize("writer", [GenA, GenB, GenC, GenD])
    @pytest.mark.parametrize("order", "<>")
    def test_only_the_version_words_are_changed(self, writer: type[GenB], order: str) -> None:
        image = writer(order).image()
        changed = with_kernel(image[:PREFIX_BYTES], "6.18.44") + image[PREFIX_BYTES:]
        assert inspect(io.BytesIO(changed)).header.kernel == "6.18.44"
        numbers = ".".join(map(str, writer.version[:3]))
        assert with_kernel(changed[:PREFIX_BYTES], numbers) + changed[PREFIX_BYTES:] == image

    @pytest.mark.parametrize(("change", "why"), [
        ({"version": (2, 6, 28, 5)}, "revision 5, and kernels of 3.0 take 6"),
        ({"machine": b"i686"}, "written on i686"),
        ({"machine": b"s390x"}, "written on s390x"),
    ])
    def test_what_else_does_not_fit_is_not_forced(self, tmp_path: Path, change: dict[str, Any], why: str) -> None:
        kernel, writer = standing_in("3.0"), GenD()
        writer.version, writer.machine, writer.word = (2, 6, 28, 6), b"x86_64", "Q"
        for name, value in change.items():
            setattr(writer, name, value)
        image = writer.image()
        with (pytest.raises(ImageVersionUnsupported, match=why),
              restarted(kernel, image, tmp_path / "image", force_version=True)):
            pass
        assert not kernel.seen

    def test_nor_another_generation_or_processor(self, tmp_path: Path) -> None:
        for kernel, writer, why in ((standing_in("3.0"), GenC(), "is of gen-C"),
                                    (standing_in(), GenB(), "processor with|processor without")):
            writer.machine, writer.word = b"x86_64", "Q"
            writer.has_xsave = "xsave" not in RunningKernel().processor_flags
            with (pytest.raises(ImageVersionUnsupported, match=why),
                  restarted(kernel, writer.image(), tmp_path / "image", force_version=True)):
                pass
            assert not kernel.seen

    def test_the_plan_says_so(self, tmp_path: Path) -> None:
        kernel = standing_in()
        ours = kernel.image(100_000, 100_001)
        theirs = with_kernel(ours[:PREFIX_BYTES], "2.6.28") + ours[PREFIX_BYTES:]
        (tmp_path / "image").write_bytes(theirs)

        def plan(**options) -> api.RestartPlan:
            with (tmp_path / "image").open("rb") as file:
                return api.plan(file.fileno(), options=api.RestartOptions(**options))

        assert [made.name for made in plan().makes] == ["100000 (restored)", "100001 (restored)"]
        assert [clash["error"] for clash in plan().clashes] == ["engine.feature-missing"]
        [clash] = plan(linux_cr=V14).clashes
        assert clash["error"] == "image.version-unsupported"
        forced = plan(linux_cr=V14, force_version=True)
        assert not forced.clashes
        assert "new pids" in forced.notes[0]


def test_without_proof_no_number_is_tried(program: Program, tmp_path: Path) -> None:
    """On mainline they are other calls: the stand-in listens on all of them and hears nothing."""
    kernel = standing_in("3.0")

    def call() -> api.CheckpointResult:
        with (tmp_path / "image").open("wb") as file:
            return api.checkpoint(program.pid, file.fileno(), crids=CridCounter(tmp_path / "crid"),
                                  options=api.CheckpointOptions(engine="kernel"))

    with pytest.raises(FeatureMissing, match="none was tried"):
        kernel.run(call)
    assert not kernel.seen
