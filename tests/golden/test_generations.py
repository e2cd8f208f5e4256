"""Images of all generations, built from the specification's tables, decode to what was put into them."""

from __future__ import annotations

import io

import pytest

from crd.image.inspect import inspect
from tests.support.linux_cr import IMAGES, PIDS_24, TAKEN_AT, WRITERS, GenA, GenB, GenC, GenD

TASKS = [(2754, 2700, 2754), (2755, 2754, 2755)]


def look(image: bytes):
    return inspect(io.BytesIO(image))


@pytest.mark.parametrize("name", IMAGES)
def test_all_that_is_known_is_found(name):
    found = look(IMAGES[name])
    writer = WRITERS[name.rpartition("-")[0]]
    assert (found.broken, found.generation, found.byte_order) == (None, name[:5], name.rpartition("-")[2])
    assert (found.image_bytes, found.trailing_bytes) == (len(IMAGES[name]), 0)
    header = found.header
    assert (header.major, header.minor, header.patch, header.rev) == writer.version
    assert (header.time, header.flags) == (TAKEN_AT, int(name[:5] in {"gen-A", "gen-B"}))
    assert (header.release, header.version, header.machine) == (writer.release.decode(), "#1", "i686")
    assert [(task.pid, task.parent_pid, task.thread_group) for task in found.tasks] == TASKS
    state_and_signal = (None, None) if name[:5] == "gen-D" else (2, 17)  # where they are in gen-D is not known
    groups = None if name[:5] in {"gen-A", "gen-B"} else 2754
    assert {(task.process_group, task.session) for task in found.tasks} == {(groups, groups)}
    assert [(task.comm, task.state, task.exit_signal) for task in found.tasks] == [("self", *state_and_signal)] * 2
    assert {file.path for file in found.files} == {"/tmp/in_0", "/tmp/out0"}
    assert not [entry for entry in found.records if entry.name.startswith("RECORD")]
    assert found.records[-1].name == "TAIL"


@pytest.mark.parametrize("name", [name for name in IMAGES if name[:5] in {"gen-A", "gen-B"}])
def test_memory_and_descriptors_of_the_early_generations(name):
    found = look(IMAGES[name])
    assert [(area.pid, area.start, area.end, area.flags, area.pages) for area in found.memory] == [
        (pid, 0x8000, 0xA000, "rw-p", 1) for pid in (2754, 2755)]
    assert [(file.pid, file.fd, file.path, file.position, file.close_on_exec) for file in found.files] == [
        (pid, fd, path, 7, bool(fd)) for pid in (2754, 2755) for fd, path in ((0, "/tmp/in_0"), (1, "/tmp/out0"))]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("frame_codes", ["II", "HH"])
@pytest.mark.parametrize("layout", ["A", "B", "wide"])
@pytest.mark.parametrize("pids", [(), PIDS_24])
def test_what_is_inferred_of_gen_b_is_resolved_image_by_image(order, frame_codes, layout, pids):
    found = look(GenB(order, frame_codes).image(pids, layout))
    assert (found.broken, found.generation, found.header.kernel) == (None, "gen-B", "2.6.29")
    assert (found.header.rev, found.header.time, found.header.flags) == (1, TAKEN_AT, 1)
    assert [(task.pid, task.parent_pid, task.thread_group) for task in found.tasks] == TASKS


@pytest.mark.parametrize("writer", [GenC("<"), GenC(">"), GenD("<")])
def test_the_architecture_of_the_late_generations(writer):
    number, name = {"<": (1, "x86_32"), ">": (3, "s390x")}[writer.order]
    assert f"architecture {number} ({name})" in look(writer.image()).notes


def test_a_pipe_of_gen_b_has_no_path_and_a_record_nobody_knows():
    writer = GenB()
    fd = writer.record(302, "IiII", 9, 3, 0, 0) + writer.record(303, "HHI", 3, 1, 0) + writer.record(330, "I", 5)
    image = writer.image().replace(writer.record(301, "II", 0, 2), writer.record(301, "II", 0, 3) + fd, 1)
    found = look(image)
    assert found.broken is None
    assert [(file.pid, file.fd, file.path) for file in found.files if file.fd == 3] == [(2754, 3, "")]


@pytest.mark.parametrize("order", "<>")
def test_patch_04_alone(order):
    writer = GenA(order)
    image = b"".join([writer.head(), writer.record(101, "6I", 0, 0, 0, 17, 16, 0),
                      writer.raw(3, b"self".ljust(16, b"\0")), writer.tail()])
    found = look(image)
    assert (found.broken, len(image), [task.comm for task in found.tasks]) == (None, 304, ["self"])


@pytest.mark.parametrize("name", IMAGES)
def test_every_prefix_is_told_to_be_one(name):
    image = IMAGES[name]
    for n_bytes in (*range(16, 800, 3), *range(800, len(image), 97), *range(len(image) - 60, len(image))):
        found = look(image[:n_bytes])
        assert found.broken, n_bytes
        assert 0 <= found.broken.offset <= found.broken.end <= n_bytes
        assert found.broken.record
