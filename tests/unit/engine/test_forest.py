"""Who makes whom, and what becomes of the pid array, without a process."""

from __future__ import annotations

import io
import struct

import pytest

from crd.engine.kernel.forest import Role, forest
from crd.engine.kernel.pid_array import pid_array
from crd.errors import RestartUnsupported
from crd.image.inspect import inspect
from crd.image.inspection import TaskEntry
from tests.support.linux_cr import V23, GenA, GenB, GenC, GenD


def entry(pid: int, parent: int, process: int, group: int | None = None, session: int | None = None) -> TaskEntry:
    return TaskEntry(pid, parent, process, process_group=group, session=session)


ROOT = entry(10, 1, 10, 10, 10)


@pytest.mark.parametrize(("why", "tasks"), [
    ("two with the same", [ROOT, entry(11, 10, 11, 10, 10), entry(11, 10, 11, 10, 10)]),
    ("without a pid", [ROOT, entry(0, 10, 0, 10, 10)]),
    ("a thread as its first", [entry(10, 1, 9, 10, 10)]),
    ("thread of 12, which is not in the image", [ROOT, entry(11, 10, 12, 10, 10)]),
    ("its own ancestor", [ROOT, entry(11, 12, 11, 10, 10), entry(12, 11, 12, 10, 10)]),
    ("process group 11, but not in its session", [ROOT, entry(11, 10, 11, 11, 11), entry(12, 10, 12, 11, 10)]),
    ("session 13, which it cannot have from its parent 11", [
        ROOT, entry(11, 10, 11, 10, 10), entry(12, 10, 12, 10, 10), entry(13, 12, 13, 13, 13),
        entry(14, 11, 14, 13, 13)]),
])
def test_what_cannot_be_made(why: str, tasks: list[TaskEntry]) -> None:
    with pytest.raises(RestartUnsupported, match=why):
        forest(tasks)


def test_without_sessions_parents_make_their_children() -> None:
    root = forest([entry(10, 1, 10), entry(12, 11, 12), entry(11, 10, 11), entry(13, 1, 11)])
    assert [(node.pid, node.parent and node.parent.pid, node.session, node.process_group, node.role, node.threads)
            for node in root.family()] == [
        (10, None, 0, 0, Role.TASK, []), (11, 10, 0, 0, Role.TASK, [13]), (12, 11, 0, 0, Role.TASK, [])]


def test_whose_parent_is_not_in_the_image_is_the_roots() -> None:
    [child] = forest([ROOT, entry(11, 4, 11, 11, 11)]).late
    assert (child.pid, child.parent.pid) == (11, 10)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("writer", "entries", "renumbered"), [
    (GenA, [(10, 10, 1, 7), (11, 11, 10, 7)], [(11, 11, 1, 7), (10, 10, 11, 7)]),
    (GenB, [(10, 10, 1, 7), (11, 11, 10, 7)], [(11, 11, 1, 7), (10, 10, 11, 7)]),
    (GenC, [(10, 1, 10, 4, 4, 7), (11, 10, 11, 10, 4, 7)], [(11, 1, 11, 11, 11, 7), (10, 11, 10, 11, 11, 7)]),
    (GenD, [(10, 1, 10, 10, 10, 7), (11, 1, 10, 12, 10, 7)], [(11, 1, 11, 11, 11, 7), (10, 1, 11, 11, 11, 7)]),
    (V23, [(10, 1, 10, 10, 10, 0), (11, 10, 11, 12, 10, 0)], [(11, 1, 11, 11, 11, 0), (10, 11, 10, 20, 11, 0)])])
def test_two_tasks_may_swap_their_numbers(order: str, writer: type[GenB], entries, renumbered) -> None:
    written = writer(order)
    image = written.image(entries)
    array = pid_array(inspect(io.BytesIO(image)))
    assert array.offset is not None
    codes = f"{order}{len(entries[0])}i"
    old = image[array.offset:array.offset + array.n_bytes]
    assert [*struct.iter_unpack(codes, old)] == entries
    assert [*struct.iter_unpack(codes, array.renumbered(old, {10: 11, 11: 10, 12: 20}))] == renumbered


def test_tasks_of_other_pid_namespaces_are_refused() -> None:
    writer = V23()
    image = b"".join([writer.head(), writer.head_arch(), writer.tree((10, 1, 10, 10, 10, 0), (11, 10, 11, 10, 10, 1)),
                      writer.task(10), writer.tail()])
    with pytest.raises(RestartUnsupported, match="namespaces"):
        pid_array(inspect(io.BytesIO(image)))
