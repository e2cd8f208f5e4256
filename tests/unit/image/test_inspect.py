"""Recognition and walks of images that no kernel at hand can write: gen-B, big endian, gen-D, and damage."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from crd.errors import ImageTruncated, ImageVersionUnsupported
from crd.image import inspection as model
from crd.image.generations import Generation, recognise
from crd.image.inspect import inspect
from crd.image.profile import Vma
from tests.support.builders import PID, make_image, make_records, make_vma, write_image
from tests.support.linux_cr import GenB, GenC, GenD
from tests.unit.image.test_self_checkpoint import EXAMPLE, FULL_SERIES, frame

if TYPE_CHECKING:
    from crd.image.inspection import Inspection


def look(image: bytes) -> Inspection:
    return inspect(io.BytesIO(image))


class TestRecognise:
    @pytest.mark.parametrize(("front", "generation", "order"), [
        ("0100e00000000000 00d2a2c00cedfe00", Generation.A, "<"),
        ("000100e000000000 00feed0cc0a2d200", Generation.A, ">"),
        ("0100000028000000 00d2a2c00cedfe00", Generation.B, "<"),
        ("0000000100000028 00feed0cc0a2d200", Generation.B, ">"),
        ("01002800 00d2a2c00cedfe00 00000000", Generation.B, "<"),
        ("0100000030000000 00d2a2c00cedfe00", Generation.C, "<"),
        ("0000000100000030 00feed0cc0a2d200", Generation.C, ">"),
        ("0100000048000000 00d2a2c00cedfe00", Generation.D, "<"),
        ("0100000038000000 00d2a2c00cedfe00", Generation.D, "<"),
    ])
    def test_by_the_first_bytes(self, front, generation, order):
        dialect = recognise(bytes.fromhex(front))
        assert (dialect.generation, dialect.byte_order) == (generation, order)

    def test_crd_is_told_from_gen_b_by_its_profile(self):
        assert recognise(make_image()[:512]).generation is Generation.CRD
        assert recognise(EXAMPLE).generation is Generation.B

    def test_anything_else_is_refused(self):
        with pytest.raises(ImageVersionUnsupported, match="magic"):
            recognise(b"\x7fELF".ljust(64, b"\0"))
        with pytest.raises(ImageTruncated):
            recognise(EXAMPLE[:15])


class TestGenB:
    @pytest.mark.parametrize("image", [EXAMPLE, FULL_SERIES])
    def test_the_minimal_self_checkpoint(self, image):
        found = look(image)
        assert (found.generation, found.byte_order, found.whole) == ("gen-B", "little", True)
        assert [entry.offset for entry in found.records] == [0, 48, 121, 194, 267, 299, 323]
        assert [entry.name for entry in found.records] == [
            "HEAD", "BUFFER", "BUFFER", "BUFFER", "TASK", "STRING", "TAIL"]
        assert found.header.to_json()["release"] == "2.6.29-rc8-cr"
        assert [(task.comm, task.exit_signal) for task in found.tasks] == [("self", 17)]

    def test_text_behind_the_tail_is_normal(self):
        found = look(EXAMPLE + b"checkpoint id 1\n")
        assert (found.whole, found.image_bytes, found.trailing_bytes) == (True, 339, 16)

    @pytest.mark.parametrize("order", "<>")
    @pytest.mark.parametrize("frame_codes", ["II", "HH"])
    def test_the_tree_of_two_tasks(self, order, frame_codes):
        image = GenB(order, frame_codes).image()
        found = look(image)
        assert found.broken is None
        assert found.byte_order == {"<": "little", ">": "big"}[order]
        assert [(task.pid, task.thread_group, task.parent_pid) for task in found.tasks] == [
            (2754, 2754, 2700), (2755, 2755, 2754)]
        assert [(area.pid, area.start, area.end, area.flags, area.pages) for area in found.memory] == [
            (2754, 0x8000, 0xA000, "rw-p", 1), (2755, 0x8000, 0xA000, "rw-p", 1)]
        assert [(file.pid, file.fd, file.path, file.position) for file in found.files] == [
            (2754, 0, "/tmp/in_0", 7), (2754, 1, "/tmp/out0", 7), (2755, 0, "/tmp/in_0", 7), (2755, 1, "/tmp/out0", 7)]
        if frame_codes == "II":
            assert len(image) == 10967
            assert [found.records[index].offset for index in (0, 4, 5, 6, 7)] == [0, 267, 283, 331, 363]

    def test_pid_entries_of_24_bytes_are_found_by_trial(self):
        found = look(GenB().image(((9, 1, 9, 9, 9, 0), (10, 9, 10, 9, 9, 0))))
        assert found.whole
        assert [(task.pid, task.parent_pid, task.thread_group) for task in found.tasks] == [(9, 1, 9), (10, 9, 10)]

    def test_head_layout_b(self):
        found = look(GenB().head("B") + FULL_SERIES[267:])
        assert (found.whole, found.header.kernel, found.header.time) == (True, "2.6.29", 0x49D0ECC0)

    def test_unknown_framed_records_are_passed_over(self):
        image = EXAMPLE[:323] + frame(304, b"pipe?") + EXAMPLE[323:]
        found = look(image)
        assert found.whole
        assert found.records[-2].name == "RECORD 304"

    def test_a_known_record_in_the_wrong_place_is_broken(self):
        found = look(EXAMPLE[:267] + EXAMPLE[299:])
        assert (found.broken.offset, found.broken.record) == (267, "STRING")

    def test_tasks_without_end_are_refused_at_once(self):
        writer = GenB()
        found = look(writer.head() + writer.record(101, "II", 2**32 - 1, 0) + bytes(4096))
        assert "counts 4294967295 tasks" in found.broken.message


class TestGenD:
    def test_an_error_record_ends_the_image(self):
        writer = GenD()
        found = look(writer.head() + writer.raw(9999, b"") + writer.raw(5, b"\0[err -16] leak\0"))
        assert found.broken.message == "the checkpoint failed: [err -16] leak"
        assert found.broken.record == "ERROR"


class TestGenC:
    def test_the_pid_array_is_a_buffer_or_raw_and_of_either_size(self):
        writer = GenC()
        pids = writer.pack("6i", 5, 1, 5, 5, 5, 0)
        for array in (writer.raw(3, pids), pids, writer.pack("4i", 5, 5, 1, 0)):
            found = look(b"".join([writer.head(), writer.record(101, "II", 1, 0), array, writer.task(), writer.tail()]))
            assert (found.generation, found.broken) == ("gen-C", None)
            assert [(task.pid, task.parent_pid, task.comm) for task in found.tasks] == [(5, 1, "self")]


class TestCrd:
    def test_everything_is_found(self):
        found = look(make_image())
        assert (found.generation, found.whole, found.image_bytes) == ("crd", True, len(make_image()))
        assert [(task.pid, task.thread_group, task.comm) for task in found.tasks] == [
            (PID, PID, "worker"), (PID + 1, PID, "worker")]
        assert [(area.path, area.flags, area.pages) for area in found.memory] == [
            ("", "rw-p", 2), ("/usr/bin/worker", "rw-p", 1), ("", "rw-s", 0)]
        assert [(file.fd, file.path) for file in found.files] == [
            (0, "pipe:[4]"), (7, "pipe:[4]"), (8, "/usr/bin/worker"), (9, "[epoll]")]
        assert [entry.offset for entry in found.records[:6]] == [0, 48, 121, 194, 267, 283]
        assert found.records[-1].offset == len(make_image()) - 16
        sizes = [entry.payload_bytes + 8 for entry in found.records]
        assert [entry.offset for entry in found.records] == [sum(sizes[:index]) for index in range(len(sizes))]

    def test_what_was_readable_of_a_broken_image_is_kept(self):
        records = make_records()
        broken = next(index for index, record in enumerate(records) if isinstance(record, Vma))
        records[broken + 1] = make_vma(0x1000)
        found = look(write_image(records))
        assert found.broken.record == "VMA"
        assert "before the end of the VMA before it" in found.broken.message
        assert len(found.records) == 4 + broken + 1
        assert len(found.memory) == 1

    def test_trailing_bytes(self):
        found = look(make_image() + b"x" * 100_000)
        assert (found.trailing_bytes, found.notes) == (100_000, [])


def test_the_number_of_records_is_bounded(monkeypatch):
    monkeypatch.setattr(model, "RECORDS_MAX", 5)
    found = look(EXAMPLE)
    assert len(found.records) == 5
    assert "more than 5 records" in found.broken.message
