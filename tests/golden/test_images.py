"""Images of real Linux-CR kernels and of every released version of crd's profile stay readable for ever.

The kernels' images were written by v13 (2.6.28) and v16 (2.6.30-rc7) under emulation; the ``-fails``, ``-pipe``,
``-chrdev`` and ``-shanon`` ones are what a failed checkpoint left behind.
"""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest

from crd.image.inspect import inspect
from crd.image.reader import ImageReader
from crd.image.verify import verified
from tests.support.builders import make_header, make_records

IMAGES = Path(__file__).parent / "images"
ROOT = Path(__file__).parents[2]
REASONS = {"FD_DATA": "EBADF", "VMA": "ENOSYS", "pid array": "EAGAIN"}

# name: (records, tasks, areas, pages, descriptors, bytes)
WHOLE = {
    "v13-ext-frozen": (34, 1, 7, 3, 1, 14280), "v13-ext-pending": (34, 1, 7, None, 1, 17845),
    "v13-ext-running": (34, 1, 7, None, 1, 17845), "v13-ext-stopped": (34, 1, 7, None, 1, 21945),
    "v13-ext-thread": (35, 1, 7, None, 1, 21960), "v13-ext-to-pipe": (31, 1, 7, None, 0, 13676),
    "v13-ext-tree2": (62, 2, 14, None, 2, 35351), "v13-ext-tree300": (8406, 300, 2100, None, 300, 4022737),
    "v13-ext-tree4": (230, 8, 56, None, 8, 107599), "v13-nofxsr-ext-frozen": (34, 1, 7, None, 1, 13880),
    "v13-self-basic": (38, 1, 7, None, 2, 22040), "v13-self-big": (42, 1, 8, None, 2, 16836240),
    "v13-self-fpu": (38, 1, 7, None, 2, 26648), "v13-self-full": (60, 1, 11, None, 6, 43666),
    "v13-self-ldtgs": (41, 1, 8, None, 2, 26224), "v13-self-tls": (38, 1, 7, None, 2, 22572),
    "v13-self-unlinked": (41, 1, 7, None, 3, 22130), "v13-xsave-self-tls": (38, 1, 7, None, 2, 22636),
    "v13p04-self-min": (4, 1, 0, 0, 0, 304), "v16p05-self-min": (7, 1, 0, 0, 0, 339),
    "v16p06-self-plain": (10, 1, 0, 0, 0, 635), "v16p06-self-tlsfpu": (12, 1, 0, 0, 0, 1187),
}
# name: (bytes, the record that is missing)
PARTIAL = {
    "v13-init-tty-fails": (21588, "FD_DATA"), "v13-self-chrdev": (17654, "FD_DATA"),
    "v13-self-pipe": (25850, "FD_DATA"), "v13-self-shanon": (13176, "VMA"),
    "v13-zombie-child-fails": (264, "pid array"),
}


def read(name: str):
    plain = IMAGES / f"{name}.img"
    data = plain.read_bytes() if plain.exists() else gzip.decompress((IMAGES / f"{name}.img.gz").read_bytes())
    return inspect(io.BytesIO(data))


def test_every_image_has_its_test():
    names = {path.name.partition(".")[0] for path in IMAGES.iterdir()}
    assert names == {*WHOLE, *PARTIAL, "v13p04-two-appended", "crd-v1"}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_image(name):
    found = read(name)
    records, tasks, areas, pages, descriptors, image_bytes = WHOLE[name]
    assert (found.broken, found.trailing_bytes) == (None, 0)
    assert (len(found.records), len(found.tasks), len(found.memory), len(found.files), found.image_bytes) == (
        records, tasks, areas, descriptors, image_bytes)
    assert pages is None or sum(area.pages for area in found.memory) == pages
    v16 = name.startswith("v16")
    assert (found.generation, found.byte_order) == ("gen-C" if v16 else "gen-A", "little")
    assert found.header.kernel == ("2.6.30" if v16 else "2.6.28")
    assert found.header.machine == "i686"
    assert found.header.release == ("2.6.30-rc7" if v16 else "2.6.28")


@pytest.mark.parametrize("name", PARTIAL)
def test_partial_image(name):
    found = read(name)
    end, record = PARTIAL[name]
    assert (found.broken.error, found.broken.record, found.broken.offset, found.broken.end) == (
        "image.truncated", record, end, end)
    [reason] = found.notes
    assert reason.startswith("the checkpoint failed at ")
    assert REASONS[record] in reason


@pytest.mark.beside
def test_the_images_beside_the_project():
    """Those of the specification, where it lies beside the checkout: whole, or told why not."""
    folder = next((found for parent in ROOT.parents if (found := parent / "shared" / "spec" / "images").is_dir()), None)
    if folder is None:
        pytest.skip("no folder shared/spec/images beside this checkout or above it; tests/golden/images has copies")
    for path in sorted(folder.glob("*.img*")):
        name = path.name.partition(".")[0]
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found = inspect(io.BytesIO(data))
        if name in PARTIAL:
            assert (found.broken.end, found.broken.record) == PARTIAL[name], name
            assert found.notes, name
        else:
            assert found.broken is None, name
            assert found.image_bytes + found.trailing_bytes == len(data), name
        assert not [entry for entry in found.records if entry.name.startswith("RECORD")], name


def test_two_images_in_one_file():
    found = read("v13p04-two-appended")
    assert (found.whole, found.image_bytes, found.trailing_bytes) == (True, 304, 304)
    assert found.notes == ["another image begins at offset 304"]


def test_task_names_end_at_the_first_nul():
    assert read("v13-ext-frozen").tasks[0].comm == "t"
    assert read("v13p04-self-min").tasks[0].comm == "averylongprogra"


def test_task_tree():
    found = read("v13-ext-tree4")
    assert [(task.pid, task.parent_pid) for task in found.tasks] == [
        (201, 1), (202, 201), (203, 202), (204, 203), (207, 202), (205, 201), (206, 205), (208, 201)]
    assert {area.pid for area in found.memory} == {task.pid for task in found.tasks}


def test_the_pid_array_of_300_tasks_is_not_trusted_behind_256():
    found = read("v13-ext-tree300")
    assert "repeats after 256 entries" in found.notes[0]
    assert len({task.pid for task in found.tasks}) == 300
    assert [task.parent_pid for task in found.tasks[255:]] == [236, *[None] * 44]


def test_memory_and_files_of_a_task_that_uses_much():
    found = read("v13-self-full")
    assert {"/t"} <= {area.path for area in found.memory}
    assert [(file.fd, file.path, file.close_on_exec) for file in found.files]
    paths = [file.path for file in found.files]
    assert len(set(paths)) < len(paths), "a duplicated descriptor shows the same file"
    assert any(file.close_on_exec for file in found.files)


def test_more_pages_than_one_array_holds():
    found = read("v13-self-big")
    assert max(area.pages for area in found.memory) == 4100


def test_unlinked_file():
    assert "/out/gone (deleted)" in [file.path for file in read("v13-self-unlinked").files]


def test_crd_version_1():
    image = (IMAGES / "crd-v1.img").read_bytes()
    reader = ImageReader(io.BytesIO(image))
    assert reader.header == make_header()
    for found, written in zip(verified(reader), make_records(), strict=True):
        assert found == written
