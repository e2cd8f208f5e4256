"""Trees, and crd killed or failing at any moment: the target is unharmed, and of a restart nothing is left."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.engine.api import CheckpointOptions
from crd.engine.crid import CridCounter
from crd.engine.userspace import restart as restarting
from crd.engine.userspace import threads
from crd.engine.userspace.mem import filling
from crd.engine.userspace.skeleton import Skeleton
from crd.errors import ImageTruncated, NativeError, RestartError, TargetGone
from crd.target import procfs
from tests.engine.images import restarted, taken_with
from tests.engine.killer import take_for_ever
from tests.engine.restorer import Restorer
from tests.engine.test_restart_failures import vessels
from tests.engine.test_trees import relations
from tests.support.victims import Victim, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.victims import Program

pytestmark = pytest.mark.root


def untraced(program: Program) -> bool:
    try:
        return all(procfs.status(pid).tracer_pid == 0 for pid in program.family())
    except TargetGone:  # what crd had made, and is gone now
        return False


@pytest.mark.parametrize(("arguments", "method"), [([], "auto"), ([], "copy"), (["adopts"], "auto")])
def test_a_checkpoint_that_is_killed_at_any_moment(tmp_path: Path, arguments: list[str], method: str) -> None:
    chance = random.Random(11)
    with Victim("tree", tmp_path, *arguments) as victim:
        before = relations(victim)
        for _ in range(40):
            child = os.fork()
            if not child:
                take_for_ever(victim.pid, CridCounter(tmp_path / "crid"), CheckpointOptions(method=method))
            time.sleep(chance.uniform(0.001, 0.2))
            os.kill(child, signal.SIGKILL)
            assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "a checkpoint failed by itself"
            until("tracing to end", lambda: untraced(victim))
            try:
                until("all to be as before", lambda: relations(victim) == before)
            except AssertionError:
                assert relations(victim) == before, "what differs"
                raise
        taken_with(victim)
        victim.verify()


@pytest.fixture
def image(tmp_path: Path) -> Iterator[tuple[Victim, Path]]:
    """A family that was killed, and its image."""
    with Victim("tree", tmp_path, "adopts") as victim:
        path, _ = taken_with(victim, method="copy")
        victim.numbers = victim.family()  # type: ignore[attr-defined]
        victim.kill_tree()
        yield victim, path


def assert_nothing_is_left(victim: Victim) -> None:
    numbers: list[int] = victim.numbers  # type: ignore[attr-defined]
    until("free numbers", lambda: not any(Path(f"/proc/{pid}").exists() for pid in numbers))


@pytest.mark.parametrize("pids", ["original", "namespace"])
def test_a_restart_that_is_killed_at_any_moment(image: tuple[Victim, Path], pids: str) -> None:
    victim, path = image
    chance = random.Random(5)
    before = vessels()
    for _ in range(15):
        restorer = Restorer(path, pids)
        time.sleep(chance.uniform(0, 0.15))
        restorer.kill()
        until("its vessels to end", lambda: not vessels() - before)
        assert_nothing_is_left(victim)
    restarted(path, victim)
    victim.verify()


@pytest.mark.parametrize(("where", "step"), [
    (Skeleton, "_make_aliens"), (Skeleton, "_make_groups"), (Skeleton, "_bury"), (threads, "set_up"),
    (threads, "set_registers"), (restarting.placement, "restart"), (filling, "map_areas")])
def test_a_step_that_fails(image: tuple[Victim, Path], where: object, step: str,
                           monkeypatch: pytest.MonkeyPatch) -> None:
    victim, path = image
    fds, children = os.listdir("/proc/self/fd"), procfs.children(os.getpid())
    done, calls = getattr(where, step), []

    def fail(*arguments, **named):
        result = done(*arguments, **named)
        calls.append(step)
        if len(calls) == 5 or step not in {"set_up", "set_registers", "map_areas"}:
            raise NativeError("the machine is on fire")
        return result

    with monkeypatch.context() as broken:
        broken.setattr(where, step, fail)
        with pytest.raises((NativeError, RestartError), match="fire"):
            restarted(path)
    assert os.listdir("/proc/self/fd") == fds
    assert procfs.children(os.getpid()) == children
    assert not any(Path(f"/proc/{pid}").exists() for pid in victim.numbers)  # type: ignore[attr-defined]
    restarted(path, victim)
    victim.verify()


def test_an_image_that_ends_too_early(image: tuple[Victim, Path]) -> None:
    victim, path = image
    content = path.read_bytes()
    for length in (len(content) - 1, len(content) * 3 // 4, len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(ImageTruncated):
            restarted(path)
        assert not any(Path(f"/proc/{pid}").exists() for pid in victim.numbers)  # type: ignore[attr-defined]


def test_a_caller_that_calls_it_off(image: tuple[Victim, Path]) -> None:
    from crd.engine.api import restart

    victim, path = image

    def refuse(_result: object) -> None:
        raise RestartError("called off")

    with path.open("rb") as file, pytest.raises(RestartError, match="called off"):
        restart(file.fileno(), confirm=refuse)
    assert not any(Path(f"/proc/{pid}").exists() for pid in victim.numbers)  # type: ignore[attr-defined]
