"""A stream cut into literals and pages: threads take turns to read it, and compress side by side what is new.

The thread that reads hashes the pages, looks them up, and keeps those that no pack holds yet until it has a batch of
them; then the next thread reads, while this one compresses the batch, which is in that core's cache.  There is one more
of them than may compress, so that these need not wait for what is read.

::

    StreamReader -> Record headers and payloads -> Cut: pieces, page numbers, literals -> Batch of new pages -> blocks
"""

from __future__ import annotations

import struct
import threading
from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crd.archive.compressor import BlockCompressor
from crd.archive.manifest import LITERAL_BYTES_MAX
from crd.archive.pack import BLOCK_BYTES, PAGES_MAX, SCATTERED_FRAME_PAGES, entry
from crd.archive.reader import StreamReader
from crd.errors import ArchiveError, ImageError
from crd.image.framing import FRAME, PAYLOAD_BYTES_MAX
from crd.image.since import KEPT_RUNS_MAX, RUNS_PER_RECORD_MAX, PagesSince
from crd.native.frames import BLOCK_PAGES
from crd.native.memory import PAGE_BYTES
from crd.native.pages import HASH_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crd.archive.base import Known
    from crd.archive.followed import Stretch

BATCH_BYTES = 8 * BLOCK_BYTES
_HANDED_OVER_AT_ONCE = 3
"""Batches: the store takes some time for each call, however little it gets."""
_BATCHES_IN_FLIGHT_PER_WORKER = 3
"""Compressed but not yet stored."""
_COUNT = struct.Struct("<I")
_RUN_BYTES = 16
REMEMBERED_PAGES_MAX = 1 << 20
"""4 GiB: images with more are followed by none."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Neighbouring blocks of a pack: as they are stored, and their entries in its table."""

    blocks: list[bytes]
    entries: bytes


@dataclass(slots=True)
class Cut:
    """What a stream was cut into.

    Attributes:
        image_bytes: of the stream.
        pieces, pages, literals: as in a manifest, of which the pack of new pages is the first.
        hashes: 16 bytes of each new page.
        page_hashes: 16 bytes of each of the first REMEMBERED_PAGES_MAX pages or fewer.
    """

    image_bytes: int = 0
    pieces: array[int] = field(default_factory=lambda: array("I"))
    pages: array[int] = field(default_factory=lambda: array("Q"))
    literals: bytearray = field(default_factory=bytearray)
    hashes: bytearray = field(default_factory=bytearray)
    page_hashes: bytearray = field(default_factory=bytearray)
    _pieced: int = 0  # bytes of literals that a piece tells of

    def literal(self, content: bytes | bytearray | memoryview) -> None:
        """Take what is no page.

        Raises:
            ArchiveError: it is more than is kept in one image.
        """
        self.image_bytes += len(content)
        self.literals += content
        if len(self.literals) > LITERAL_BYTES_MAX:
            raise ArchiveError(f"the image has more than {LITERAL_BYTES_MAX >> 20} MiB of small records")

    def known(self, numbers: array[int], hashes: bytes | bytearray) -> None:
        """Take pages by their numbers, and 16 bytes of hash of each.

        Raises:
            ArchiveError: they are more than are kept in one image.
        """
        self.image_bytes += len(numbers) * PAGE_BYTES
        if len(self.literals) > self._pieced or not self.pieces:
            self._begin_piece()
        self.pieces[-1] += len(numbers)
        self.pages.extend(numbers)
        if len(self.pages) <= REMEMBERED_PAGES_MAX:
            self.page_hashes += hashes
        if len(self.pages) > PAGES_MAX:
            raise ArchiveError(f"the image is larger than {PAGES_MAX * PAGE_BYTES >> 30} GiB: none such is kept")

    def end(self) -> None:
        """Take note that this was all."""
        if len(self.literals) > self._pieced:
            self._begin_piece()

    def _begin_piece(self) -> None:
        self.pieces.extend((len(self.literals) - self._pieced, 0))
        self._pieced = len(self.literals)


class StreamCutter:
    """Cuts what comes out of a descriptor, in bounded memory but for what is told of each page.

    Attributes:
        cut: what of it is read.
        workers: how many threads must ``work``: one reads while the others compress.
    """

    def __init__(self, fd: int, known: Known, hand_over: Callable[[list[Batch]], object], *,
                 level: int, threads: int) -> None:
        """Cut a stream.

        Args:
            fd: where it comes from: a pipe or anything else that can be polled.  It stays the caller's.
            known: the pages that packs hold already; the new ones are added.
            hand_over: takes the new pages, in order, some batches at a time, from one of the threads; ``stored`` says
                when they are done.
            level: of zstd.
            threads: that compress at a time.
        """
        self._reader = StreamReader(fd)
        self._index = known.index
        self._followed = known.followed
        self._hand_over = hand_over
        self._level = level
        self.workers = threads + 1
        self._room = threading.Semaphore(_BATCHES_IN_FLIGHT_PER_WORKER * self.workers)
        self._compressing = threading.Semaphore(threads)
        self._turn = threading.Lock()  # who reads: guards all that is told of the stream
        self._ended = False
        self._n_batches = 0
        self._ahead: deque[Stretch] = deque()  # of the record that is being read
        self._told: Iterator[tuple[bytes, list[Stretch]]] = iter(())  # records that are made of what is told
        self.cut = Cut()
        self._order = threading.Lock()  # who hands over: guards these
        self._compressed: dict[int, Batch] = {}
        self._in_order: list[Batch] = []
        self._n_in_order = 0

    @property
    def received_bytes(self) -> int:
        """How much came out of the descriptor so far."""
        return self._reader.received_bytes

    @property
    def front(self) -> bytes:
        """The first bytes of the stream, as far as ``crd.image.generations`` needs them."""
        return bytes(self._reader.front)

    def stop(self) -> None:
        """Make ``work`` return soon, in all threads."""
        self._ended = True
        self._reader.stop()
        self._room.release(self.workers)

    def close(self) -> None:
        """Free what it holds; only when ``work`` has returned in all threads."""
        self._reader.close()

    def stored(self, n: int) -> None:
        """Make room for as many batches."""
        self._room.release(n)

    def work(self) -> None:
        """Cut the stream to its end, or until ``stop``; each of the threads runs this once.

        Raises:
            ArchiveUnavailable: the stream cannot be read.
            ArchiveError: it is more than is kept in one image.
        """
        batch, compressor = memoryview(b""), None  # made when there is something for them: most images are small
        try:
            while True:
                self._room.acquire()
                with self._turn:
                    if not (self._ended or batch):
                        batch = memoryview(bytearray(BATCH_BYTES))
                    length, scattered = (0, False) if self._ended else self._fill(batch)
                    if not length:
                        self._ended = True
                        break
                    number = self._n_batches
                    self._n_batches += 1
                compressor = compressor or BlockCompressor(self._level)
                with self._compressing:
                    blocks = compressor.blocks(batch[:length], SCATTERED_FRAME_PAGES if scattered else BLOCK_PAGES)
                self._take(number, Batch(blocks, b"".join(map(entry, blocks))))
            self._take_no_more()
        except BaseException:
            self.stop()
            raise
        finally:
            self._room.release()

    def _fill(self, batch: memoryview) -> tuple[int, bool]:
        """Read until the batch is full of new pages, or the stream ends.

        Returns:
            Its bytes, and whether there were other pages between them.
        """
        filled, before = 0, len(self.cut.pages)
        while filled < len(batch) and not self._ended:
            if not self._ahead:
                self._begin_record()
                continue
            n, first = self._ahead.popleft()
            if first is None:
                filled += self._new_pages(batch[filled:filled + n * PAGE_BYTES], n)
            else:
                assert self._followed  # noqa: S101
                self.cut.known(*self._followed.pages(first, n))
        return filled, (len(self.cut.pages) - before) * PAGE_BYTES > filled

    def _begin_record(self) -> None:
        if made := next(self._told, None):
            head, stretches = made
            self.cut.literal(head)
            self._ahead.extend(stretches)
            return
        header = self._receive(FRAME.size)
        kind, length = FRAME.unpack(header) if len(header) == FRAME.size else (0, 0)
        if (not kind or length > PAYLOAD_BYTES_MAX) and kind != PagesSince.record_type:
            self.cut.literal(header)  # a kernel's image, of which these are other bytes: the rest is cut as it comes
            self._ahead.append((PAGES_MAX + 1, None))
            return
        if kind == PagesSince.record_type:
            self._told = self._expanded(length)
            return
        self.cut.literal(header)
        n, short = divmod(length, PAGE_BYTES)
        self.cut.literal(self._receive(short))
        if n:
            self._ahead.append((n, None))

    def _expanded(self, length: int) -> Iterator[tuple[bytes, list[Stretch]]]:
        """Read what comes before the pages of a PAGES_SINCE; raises ArchiveError."""
        if not self._followed:
            raise ArchiveError("the stream tells only what has changed, and nobody knows since when")
        head = self._receive(2 * _COUNT.size)
        for count_max, more in ((KEPT_RUNS_MAX, _COUNT.size), (RUNS_PER_RECORD_MAX, 0)):
            [n] = _COUNT.unpack(head[-_COUNT.size:]) if len(head) >= _COUNT.size else [0]
            if n > count_max:
                raise ArchiveError(f"the stream tells of {n} runs at once")
            head += self._receive(n * _RUN_BYTES + more)
        try:
            record = PagesSince.decode(head)
        except ImageError as error:
            raise ArchiveError(f"the stream is damaged: {error.message}") from error
        if len(head) + sum(run.pages for run in record.runs) * PAGE_BYTES != length:
            raise ArchiveError("the stream is damaged: its pages are not those it tells of")
        return self._followed.expanded(record)

    def _receive(self, length: int) -> bytearray:
        content = bytearray(length)
        del content[self._reader.read(memoryview(content)):]
        self._ended |= len(content) < length
        return content

    def _new_pages(self, room: memoryview, wanted: int) -> int:
        """Read of a record's pages what there is room for, and keep those that are new; return their bytes."""
        length = self._reader.read(room)
        n, rest = divmod(length, PAGE_BYTES)
        self._ended |= length < len(room)
        if n < wanted:
            self._ahead.appendleft((wanted - n, None))
        kept = 0
        torn = bytes(room[length - rest:length])
        if n:
            found = self._index.add(room[:n * PAGE_BYTES], len(self.cut.hashes) // HASH_BYTES)
            self.cut.known(found.numbers, found.hashes)
            self.cut.hashes += found.fresh_hashes
            kept = len(found.fresh_hashes) // HASH_BYTES * PAGE_BYTES
        self.cut.literal(torn)  # the stream ends inside a page
        return kept

    def _take(self, number: int, batch: Batch) -> None:
        """Take a batch that is compressed, and hand over what is next when it is enough."""
        with self._order:
            self._compressed[number] = batch
            while following := self._compressed.pop(self._n_in_order, None):
                self._n_in_order += 1
                self._in_order.append(following)
            if len(self._in_order) >= _HANDED_OVER_AT_ONCE:
                self._hand_over_all()

    def _take_no_more(self) -> None:
        with self._order:
            if self._n_in_order == self._n_batches and self._in_order:  # else another thread has something yet
                self._hand_over_all()

    def _hand_over_all(self) -> None:
        ready, self._in_order = self._in_order, []
        self._hand_over(ready)
