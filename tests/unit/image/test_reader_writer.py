from __future__ import annotations

import errno
import io
import os
import threading
import tracemalloc

import pytest

from crd.errors import ImageCorrupt, ImageError, ImageTruncated, ImageVersionUnsupported
from crd.image.framing import FRAME, PAYLOAD_BYTES_MAX
from crd.image.profile import PAGE_BYTES, PageRun, Pages, Profile
from crd.image.reader import PROFILE_RECORDS, ImageReader
from crd.image.records import Tail, Task
from crd.image.verify import verified
from crd.image.writer import ImageWriter
from tests.support.builders import (
    MemorySink,
    make_header,
    make_image,
    make_pages,
    make_profile,
    make_records,
    make_tree_records,
    write_image,
)

IMAGE = make_image()


def read(image: bytes) -> list:
    return list(ImageReader(io.BytesIO(image)))


def test_reads_the_records_that_were_written():
    reader = ImageReader(io.BytesIO(IMAGE))
    assert reader.header == make_header()
    for found, written in zip(reader, make_records(), strict=True):
        assert found == written
    assert reader.bytes_read == len(IMAGE)


def test_the_sample_has_every_type_of_record():
    assert {type(record) for record in make_tree_records()} == set(PROFILE_RECORDS.values()) - {Tail}


def test_offset_is_where_the_record_starts():
    reader = ImageReader(io.BytesIO(IMAGE))
    for record in reader:
        kind, _ = FRAME.unpack_from(IMAGE, reader.offset)
        assert kind == record.record_type


def test_nothing_behind_the_tail_is_read():
    source = io.BytesIO(IMAGE + b"next image")
    assert len(list(ImageReader(source))) == len(make_records())
    assert source.read() == b"next image"


def test_a_pipe_with_chunks_of_any_size():
    class Dribble:
        """Gives at most 7 bytes at a time."""

        def readinto(self, buffer):
            return os.readv(read_end, [buffer[:7]])

    read_end, write_end = os.pipe()

    def feed():
        with os.fdopen(write_end, "wb", buffering=0) as pipe:
            for start in range(0, len(IMAGE), 11):
                pipe.write(IMAGE[start:start + 11])

    feeder = threading.Thread(target=feed)
    feeder.start()
    records = [type(record) for record in verified(ImageReader(Dribble()))]
    feeder.join()
    os.close(read_end)
    assert records == [type(record) for record in make_records()]


def test_bulk_data_lives_until_the_next_record():
    pages = [record for record in ImageReader(io.BytesIO(IMAGE)) if isinstance(record, Pages)]
    assert pages[0].data.nbytes == PAGE_BYTES
    reader = ImageReader(io.BytesIO(IMAGE))
    fills = [set(record.data) for record in reader if isinstance(record, Pages)]
    assert fills == [{0xAB}, {0xCD}]


def test_every_prefix_ends_too_early():
    ends = [*range(400), *range(400, len(IMAGE), 97), len(IMAGE) - 1]
    for n_bytes in ends:
        with pytest.raises(ImageTruncated) as caught:
            read(IMAGE[:n_bytes])
        assert caught.value.details["errno"] == errno.EPIPE
        assert caught.value.offset <= n_bytes == caught.value.details["end"]


def test_an_unknown_record_is_refused():
    image = IMAGE.replace(FRAME.pack(Task.record_type, 24), FRAME.pack(0x4352FFFF, 24))
    with pytest.raises(ImageCorrupt, match="no known type") as caught:
        read(image)
    assert caught.value.offset == IMAGE.index(FRAME.pack(Task.record_type, 24))


def test_a_payload_that_is_too_long_is_refused_unread():
    at = IMAGE.index(FRAME.pack(Profile.record_type, len(make_profile().encode())))
    image = IMAGE[:at] + FRAME.pack(Profile.record_type, 2**32 - 1) + IMAGE[at + 8:]
    source = io.BytesIO(image)
    with pytest.raises(ImageCorrupt, match="claims 4294967295 bytes"):
        list(ImageReader(source))
    assert source.tell() == at + 8


def test_a_later_version_is_told_as_such():
    with pytest.raises(ImageVersionUnsupported, match="version 2"):
        read(write_image([make_profile(version=2)]))


@pytest.mark.parametrize("pages", [0, 2, 257, 2**63])
def test_pages_that_are_not_those_of_the_runs_are_refused(pages):
    record = make_pages()
    record.runs = (PageRun(address=4096, pages=pages),)
    payload = record.encode()
    image = write_image([])
    at = len(image) - 16
    with pytest.raises(ImageCorrupt, match="pages"):
        read(image[:at] + FRAME.pack(Pages.record_type, len(payload)) + payload + image[at:])


def test_a_kernel_image_is_no_image_of_crd():
    gen_c = bytes.fromhex("010000003000000000d2a2c00cedfe00") + bytes(100)
    with pytest.raises(ImageVersionUnsupported) as caught:
        read(gen_c)
    assert "crd inspect" in caught.value.hint


def test_patch_04_numbering_is_refused():
    with pytest.raises(ImageVersionUnsupported, match="kernel"):
        read(IMAGE.replace(FRAME.pack(3, 65), FRAME.pack(2, 65)))


def test_memory_stays_bounded():
    """64 MiB of pages pass through; nothing near that is allocated."""
    record = Pages(pid=1, runs=[PageRun(address=0, pages=256)])
    megabyte = bytes(256 * PAGE_BYTES)

    class Source:
        def __init__(self):
            sink = MemorySink()
            writer = ImageWriter(sink)
            writer.header(make_header())
            writer.flush()
            frame_at = writer.offset
            writer.write_bulk(record, megabyte)
            self.front = sink.getvalue()[:frame_at]
            self.unit = sink.getvalue()[frame_at:]
            self.left = 64
            self.ready = io.BytesIO(self.front)

        def readinto(self, buffer):
            if n_read := self.ready.readinto(buffer):
                return n_read
            self.left -= 1
            self.ready = io.BytesIO(self.unit if self.left >= 0 else b"")
            return self.ready.readinto(buffer)

    source = Source()
    tracemalloc.start()
    try:
        with pytest.raises(ImageTruncated):
            for _ in ImageReader(source):
                pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert source.left == -1
    assert peak < 3 * PAYLOAD_BYTES_MAX


class TestWriter:
    def test_pages_go_to_the_sink_uncopied(self):
        seen = []

        class Sink:
            def write(self, *buffers):
                seen.extend(buffers)

        writer = ImageWriter(Sink())
        first, second = bytearray(PAGE_BYTES), memoryview(bytes(PAGE_BYTES))
        writer.write_bulk(Pages(pid=1, runs=[PageRun(address=0, pages=2)]), first, second)
        assert seen[1] is first
        assert seen[2] is second

    def test_offset_counts_all_bytes(self):
        sink = MemorySink()
        writer = ImageWriter(sink)
        writer.header(make_header())
        assert writer.offset == 267
        writer.write_bulk(Pages(pid=1, runs=[PageRun(address=0, pages=1)]), bytes(PAGE_BYTES))
        writer.finish()
        assert writer.offset == len(sink.getvalue())

    def test_small_records_are_gathered(self):
        writes = []

        class Sink:
            def write(self, *buffers):
                writes.append(sum(map(len, buffers)))

        writer = ImageWriter(Sink())
        for _ in range(5000):
            writer.write(Task(state=0, exit_state=0, exit_code=0, exit_signal=17))
        writer.finish()
        assert sum(writes) == writer.offset
        assert len(writes) == 3

    @pytest.mark.parametrize(("runs", "data"), [
        ([], b""), ([PageRun(address=0, pages=257)], bytes(257 * PAGE_BYTES)),
        ([PageRun(address=0, pages=1)], bytes(PAGE_BYTES - 1)), ([PageRun(address=0, pages=1)], bytes(2 * PAGE_BYTES)),
    ])
    def test_refuses_pages_that_do_not_fit(self, runs, data):
        sink = MemorySink()
        with pytest.raises(ImageError, match="PAGES"):
            ImageWriter(sink).write_bulk(Pages(pid=1, runs=runs), data)
        assert sink.getvalue() == b""

    def test_refuses_too_long_a_payload(self):
        with pytest.raises(ImageError, match="too long"):
            ImageWriter(MemorySink()).write(make_profile(vdso_digest=bytes(PAYLOAD_BYTES_MAX)))
