"""Trees for a Linux-CR kernel to restore an image into: who is whose child, thread, and in which group and session."""

from __future__ import annotations

import errno
import os
import pickle
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import TYPE_CHECKING, NamedTuple

import pytest

from crd.engine import api
from crd.engine.kernel import members, tasks
from crd.engine.kernel.table import GHOST, named
from crd.errors import ImageCorrupt, RestartError
from tests.support.linux_cr import V23, GenC, GenD
from tests.support.standin_kernel import StandInKernel
from tests.support.victims import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.linux_cr import GenB

FREEZER = Path("/sys/fs/cgroup/freezer")
pytestmark = [pytest.mark.root, pytest.mark.beside, pytest.mark.skipif(
    not (FREEZER / "tasks").exists(), reason="the freezer cgroup is not at /sys/fs/cgroup/freezer")]
NO_DESCRIPTOR = (1 << 64) - 1
R = 100_000
"""Pid of the first task in the image; those of the others follow."""


class Entry(NamedTuple):
    """A task of an image."""

    pid: int
    parent: int
    process: int
    group: int
    session: int
    padding: int = 0


def task(n: int, parent: int, group: int, session: int, *, thread_of: int | None = None) -> Entry:
    """An entry with numbers counted from the root's."""
    return Entry(R + n, R + parent, R + (n if thread_of is None else thread_of), R + group, R + session)


ROOT = Entry(R, 1, R, R, R)
TREES: dict[str, list[Entry]] = {
    "a chain": [ROOT, task(1, 0, 0, 0), task(2, 1, 0, 0), task(3, 2, 0, 0)],
    "threads": [ROOT, task(1, -R + 1, 0, 0, thread_of=0), task(2, -R + 1, 0, 0, thread_of=0), task(3, 0, 3, 0),
                task(4, 0, 3, 0, thread_of=3)],
    "jobs of a shell": [ROOT, task(1, 0, 1, 0), task(2, 0, 1, 0), task(3, 0, 3, 0), task(4, 3, 3, 0)],
    "sessions": [ROOT, task(1, 0, 1, 1), task(2, 1, 2, 1), task(3, 1, 2, 1), task(4, 3, 4, 4), task(5, 4, 4, 4)],
    "forked before its parent left the session": [ROOT, task(1, 0, 1, 1), task(2, 1, 0, 0), task(3, 2, 0, 0)],
    "both left the session": [ROOT, task(1, 0, 1, 1), task(2, 1, 2, 2), task(3, 2, 0, 0)],
    "child of the leader's parent": [ROOT, task(1, 0, 1, 1), task(2, 0, 1, 1), task(3, 2, 2, 1)],
    "leaders that have ended": [ROOT, task(1, 0, 51, 50), task(2, 0, 51, 50), task(3, 1, 50, 50)],
    "orphan": [ROOT, task(1, 0, 0, 0), task(2, 1, 2, 2), task(3, 0, 2, 2), task(4, 3, 3, 2)],
    "leader of a group it has left": [ROOT, task(1, 0, 0, 0), task(2, 0, 1, 0)],
    "children listed before parents": [ROOT, task(2, 1, 0, 0), task(1, 0, 0, 0)],
}
FROM_A_SHELL = [Entry(R, 77, R, 76, 75), Entry(R + 1, R, R + 1, 76, 75), Entry(R + 2, R, R + 2, R + 2, 75),
                Entry(R + 3, R, R + 3, 0, 0), Entry(R + 4, R, R + 4, 78, 75)]
"""Session and group of the root are another's, and one group whose leader has ended."""
PIDS_IN_USE = [Entry(os.getpid(), 1, os.getpid(), os.getpid(), os.getpid()),
               Entry(1, os.getpid(), 1, os.getpid(), os.getpid()), Entry(2, os.getpid(), 1, os.getpid(), os.getpid())]


@dataclass(frozen=True)
class Release:
    """How a kernel is called, and its images are written."""

    linux_cr: str
    writer: type[GenB]
    coordinated: bool

    def kernel(self, **answers) -> StandInKernel:
        return StandInKernel(named(self.linux_cr, "x86_64"), **answers)

    def image(self, entries: list[Entry], kernel: StandInKernel) -> bytes:
        return kernel.image_of(*entries, writer=self.writer())


V16 = Release("387/388/3", GenC, coordinated=False)
V18 = Release("3.0", GenD, coordinated=True)
PIDS_FIRST = Release("v23", V23, coordinated=True)


@pytest.fixture(params=[pytest.param(V16, id="gen-C"), pytest.param(V18, id="gen-D")])
def release(request: pytest.FixtureRequest) -> Release:
    return request.param


@pytest.fixture
def home(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A group in which all that is made is found."""
    group = FREEZER / f"test-{os.getpid()}"
    group.mkdir()
    yield group
    until("end of all", lambda: not (group / "tasks").read_text())
    group.rmdir()


@contextmanager
def restarted(kernel: StandInKernel, image: bytes, home: Path, path: Path, confirm=None) -> Iterator[api.RestartResult]:
    path.write_bytes(image)

    def call() -> api.RestartResult:
        (home / "tasks").write_text(str(os.getpid()))
        with path.open("rb") as file:
            return api.restart(file.fileno(), options=api.RestartOptions(linux_cr=kernel.numbers.release),
                               confirm=confirm)

    result = kernel.run(call)
    try:
        yield result
    finally:
        for pid in (home / "tasks").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), SIGKILL)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class TestPlaces:
    @pytest.mark.parametrize("tree", TREES)
    def test_every_task_is_in_its_place_when_it_calls(self, release: Release, tree: str, home: Path,
                                                      tmp_path: Path) -> None:
        kernel = release.kernel()
        with restarted(kernel, release.image(TREES[tree], kernel), home, tmp_path / "image") as result:
            assert {*result.pids} == {entry.pid for entry in TREES[tree]}
            self.check_places(TREES[tree], kernel, result)
            self.check_calls(release, kernel, result)
            assert result.tasks == sum(entry.pid == entry.process for entry in TREES[tree])
            assert result.threads == len(TREES[tree])

    def test_the_array_may_stand_before_the_tree(self, home: Path, tmp_path: Path) -> None:
        self.test_every_task_is_in_its_place_when_it_calls(PIDS_FIRST, "threads", home, tmp_path)

    @staticmethod
    def check_places(tree: list[Entry], kernel: StandInKernel, result: api.RestartResult) -> None:
        now = {call.tid: call.task for call in kernel.seen}
        for entry in tree:
            found = now[result.pids[entry.pid]]
            assert found.process == result.pids[entry.process]
            assert entry.process == R or found.parent == result.pids[entry.parent]
            for told, pid in ((entry.group, found.process_group), (entry.session, found.session)):
                assert pid == result.pids.get(told, pid)
        for field, told in (("process_group", "group"), ("session", "session")):
            pairs = {(getattr(entry, told), getattr(now[result.pids[entry.pid]], field)) for entry in tree}
            assert len({old for old, _ in pairs}) == len({new for _, new in pairs}) == len(pairs)

    @staticmethod
    def check_calls(release: Release, kernel: StandInKernel, result: api.RestartResult) -> None:
        calls = {call.tid: call for call in kernel.seen}
        assert {call.number for call in kernel.seen} == {kernel.numbers.restart}
        assert len({call.int32(1) for call in kernel.seen}) == 1
        assert {call.words[3:] for call in kernel.seen} == {(NO_DESCRIPTOR if release.coordinated else 0, 0, 0)}
        tasks_ = {tid: calls.pop(tid) for tid in result.pids.values()}
        first = 0 if release.coordinated else result.root_pid
        assert {(call.words[0], call.words[2]) for call in tasks_.values()} == {(first, 0)}
        if release.coordinated:
            [coordinator] = [call for call in calls.values() if call.words[0]]
            assert (coordinator.words[0], coordinator.words[2]) == (result.root_pid, 0)
            assert tasks_[result.root_pid].task.parent == coordinator.tid
            assert {call.words[::2] for call in calls.values() if call is not coordinator} <= {(0, GHOST, 0)}
        else:
            assert not calls, "ghosts end before these kernels are called"

    def test_session_and_group_from_outside_become_the_roots(self, release: Release, home: Path,
                                                             tmp_path: Path) -> None:
        kernel = release.kernel()
        with restarted(kernel, release.image(FROM_A_SHELL, kernel), home, tmp_path / "image") as result:
            now = {call.tid: call.task for call in kernel.seen}
            found = [now[result.pids[entry.pid]] for entry in FROM_A_SHELL]
            root = result.root_pid
            assert {entry.session for entry in found} == {root}
            assert [entry.process_group for entry in found[:4]] == [root, root, result.pids[R + 2], root]
            assert found[4].process_group not in {root, *result.pids.values()}

    def test_pids_in_use_are_no_matter(self, release: Release, home: Path, tmp_path: Path) -> None:
        kernel = release.kernel()
        with restarted(kernel, release.image(PIDS_IN_USE, kernel), home, tmp_path / "image") as result:
            assert {*result.pids} == {entry.pid for entry in PIDS_IN_USE}
            assert not {*result.pids} & {*result.pids.values()}
            assert result.threads == 3
            assert result.tasks == 2

    def test_a_zombie_is_its_parents(self, home: Path, tmp_path: Path) -> None:
        kernel = V18.kernel(zombies=frozenset({2}))
        with restarted(kernel, V18.image(TREES["a chain"][:3], kernel), home, tmp_path / "image") as result:
            until("zombie", lambda: state(result.pids[R + 2]) == "Z")
            assert state(result.pids[R + 1]) in "SR"

    def test_the_coordinator_stays_for_who_waits(self, home: Path, tmp_path: Path) -> None:
        kernel = V18.kernel()
        (tmp_path / "image").write_bytes(V18.image(TREES["a chain"], kernel))

        def call() -> int:
            (home / "tasks").write_text(str(os.getpid()))
            with (tmp_path / "image").open("rb") as file:
                result = api.restart(file.fileno(), options=api.RestartOptions(linux_cr=V18.linux_cr, reap=True))
            for pid in result.pids.values():
                os.kill(pid, SIGKILL)
            return api.wait_for_root(result)

        assert kernel.run(call) == 128 + SIGKILL


class TestFailures:
    """Whatever goes wrong: it is said, and ``home`` sees that no task is left."""

    TREE = TREES["orphan"]

    def test_a_fork_fails_in_the_middle(self, release: Release, home: Path, tmp_path: Path,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
        forked = members._forked

        def fork_unless_it_is_the_last(node) -> int:
            if node.pid == R + 4:
                raise OSError(errno.EAGAIN, "no more")
            return forked(node)

        monkeypatch.setattr(members, "_forked", fork_unless_it_is_the_last)
        kernel = release.kernel()
        with pytest.raises(RestartError, match="temporarily unavailable"), restarted(
                kernel, release.image(self.TREE, kernel), home, tmp_path / "image"):
            pass
        assert not kernel.seen

    def test_a_task_is_killed_before_the_call(self, release: Release, home: Path, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tasks, "SECONDS_WITHOUT_PROGRESS", 2.0)
        kernel = release.kernel()

        def confirm(result: api.RestartResult) -> None:
            os.kill(result.pids[R + 3], SIGKILL)

        with pytest.raises(RestartError, match=r"not find all the tasks|not read on"), restarted(
                kernel, release.image(self.TREE, kernel), home, tmp_path / "image", confirm):
            pass

    def test_the_kernel_refuses(self, release: Release, home: Path, tmp_path: Path) -> None:
        kernel = release.kernel(refuse=errno.EINVAL)
        with pytest.raises(ImageCorrupt, match="refuses"), restarted(
                kernel, release.image(self.TREE, kernel), home, tmp_path / "image"):
            pass

    def test_the_kernel_kills(self, home: Path, tmp_path: Path) -> None:
        kernel = V16.kernel(kills=True)
        with pytest.raises(RestartError, match="ended the tasks while it read the image, at offset 0"), restarted(
                kernel, V16.image(self.TREE, kernel), home, tmp_path / "image"):
            pass

    def test_the_kernel_hangs(self, release: Release, home: Path, tmp_path: Path,
                              monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tasks, "SECONDS_WITHOUT_PROGRESS", 2.0)
        kernel = release.kernel(hangs=True)
        with pytest.raises(RestartError, match="has not read on in the image for 2 s, at offset 48"), restarted(
                kernel, release.image(self.TREE, kernel), home, tmp_path / "image"):
            pass
        assert kernel.seen

    def test_the_worker_is_killed(self, release: Release, home: Path, tmp_path: Path) -> None:
        kernel = release.kernel()
        with pytest.raises((EOFError, pickle.UnpicklingError)), restarted(
                kernel, release.image(self.TREE, kernel), home, tmp_path / "image",
                lambda _: os.kill(os.getpid(), SIGKILL)):
            pass
        assert not kernel.seen
