"""A stream cut into literals and pages: threads take turns to read it, and compress side by side what is new.

The thread that reads hashes the pages, looks them up, and keeps those that no pack holds yet until it has a batch of
them; then the next thread reads, while this one compresses the batch, which is in that core's cache.

What an engine sends that tells only what has changed (``crd.image.since``) is made into the whole stream here.
"""

from __future__ import annotations

import os
import select
import struct
import threading
from array import array
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from crd.archive.manifest import LITERAL_BYTES_MAX, digest_of
from crd.archive.pack import BLOCK_BYTES, PAGES_MAX, BlockCompressor, entry
from crd.errors import ArchiveError, ArchiveUnavailable, ImageError
from crd.image.framing import FRAME
from crd.image.since import KEPT_RUNS_MAX, RUNS_PER_RECORD_MAX, PagesSince
from crd.native.memory import PAGE_BYTES
from crd.native.pages import HASH_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from crd.archive.base import Base, Stretch
    from crd.native.pages import PageIndex

BATCH_BYTES = 4 * BLOCK_BYTES
_BATCHES_IN_FLIGHT_PER_THREAD = 4
"""Compressed but not yet stored."""
_COUNT = struct.Struct("<I")
_RUN_BYTES = 16


@dataclass(frozen=True, slots=True)
class Batch:
    """Neighbouring blocks of a pack: as they are stored, and their entries in its table."""

    blocks: list[bytes]
    entries: bytes


class StreamCutter:
    """Cuts what comes out of a descriptor, in bounded memory but for what is told of each page.

    Attributes:
        received_bytes: so far.
        image_bytes: of the whole stream so far.
        pieces, pages, literals: as in a manifest, of which the pack of new pages is the first.
        hashes: 16 bytes of each new page.
        page_hashes: 16 bytes of each page of the stream.
    """

    def __init__(self, fd: int, index: PageIndex, hand_over: Callable[[Batch], object], *, base: Base | None,
                 level: int, threads: int) -> None:
        """Cut a stream.

        Args:
            fd: where it comes from: a pipe or anything else that can be polled.  It stays the caller's.
            index: of the pages that packs hold already, by their numbers; the new ones are added.
            hand_over: takes the new pages, in order, each batch from one of the threads; ``stored`` says when it is
                done.
            base: the image whose pages a stream may leave out.
            level: of zstd.
            threads: how many will ``work``.
        """
        self._fd = fd
        self._index = index
        self._hand_over = hand_over
        self._base = base
        self._level = level
        self._threads = threads
        self._room = threading.Semaphore(_BATCHES_IN_FLIGHT_PER_THREAD * threads)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._poll.register(self._stop, select.POLLIN)
        self._turn = threading.Lock()  # who reads: guards all that is told of the stream
        self._ended = False
        self._n_batches = 0
        self._unpieced = 0  # bytes of literals since the last piece
        self._ahead: deque[Stretch] = deque()  # of the record that is being read
        self._heads: Iterator[tuple[bytes, list[Stretch]]] = iter(())  # of records that it is made into
        self.page_hashes = bytearray()
        self.received_bytes = self.image_bytes = 0
        self.pieces = array("I")
        self.pages = array("Q")
        self.literals = bytearray()
        self.hashes = bytearray()
        self._order = threading.Lock()  # who hands over: guards these two
        self._cut: dict[int, Batch] = {}
        self._n_handed = 0

    def stop(self) -> None:
        """Make ``work`` return soon, in all threads."""
        self._ended = True
        os.eventfd_write(self._stop, 1)
        self._room.release(self._threads)

    def close(self) -> None:
        """Free what it holds; only when ``work`` has returned in all threads."""
        os.close(self._stop)

    def stored(self, n: int) -> None:
        """Make room for as many batches."""
        self._room.release(n)

    def finish(self) -> bytes:
        """Return the digest, once ``work`` has returned in all threads."""
        if self._unpieced:
            self.pieces.extend((self._unpieced, 0))
            self._unpieced = 0
        return digest_of(blake3(self.page_hashes), self.pieces, self.literals)

    def work(self) -> None:
        """Cut the stream to its end, or until ``stop``; each of the threads runs this once.

        Raises:
            ArchiveUnavailable: the stream cannot be read.
            ArchiveError: it is more than is kept in one image.
        """
        batch = memoryview(bytearray(BATCH_BYTES))
        compressor = BlockCompressor(self._level)
        try:
            while True:
                self._room.acquire()
                with self._turn:
                    length, scattered = (0, False) if self._ended else self._fill(batch)
                    if not length:
                        self._ended = True
                        return
                    number = self._n_batches
                    self._n_batches += 1
                blocks = compressor.blocks(batch[:length], scattered=scattered)
                self._take(number, Batch(blocks, b"".join(map(entry, blocks))))
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
        filled, before = 0, len(self.pages)
        while filled < len(batch) and not self._ended:
            if not self._ahead:
                self._begin_record()
                continue
            n, kept = self._ahead.popleft()
            if kept is not None:
                self._keep(kept, n)
                continue
            wanted = min(n * PAGE_BYTES, len(batch) - filled)
            length = self._read(batch[filled:filled + wanted])
            whole = length - length % PAGE_BYTES
            rest = bytes(batch[filled + whole:filled + length])
            if n > whole // PAGE_BYTES:
                self._ahead.appendleft((n - whole // PAGE_BYTES, None))
            filled += self._keep_new(batch[filled:filled + whole])
            if length < wanted:  # the stream ends inside a page
                self._ended = True
                self._add_literal(rest)
        return filled, (len(self.pages) - before) * PAGE_BYTES > filled

    def _begin_record(self) -> None:
        if made := next(self._heads, None):
            head, stretches = made
            self._add_literal(head)
            self._ahead.extend(stretches)
            return
        header = self._receive(FRAME.size)
        kind, length = FRAME.unpack(header) if len(header) == FRAME.size else (0, 0)
        if kind == PagesSince.record_type:
            self._heads = self._expanded(length)
            return
        self._add_literal(header)
        short = length % PAGE_BYTES
        self._ended = len(header) < FRAME.size or len(self._read_literal(short)) < short
        if length >= PAGE_BYTES:
            self._ahead.append((length // PAGE_BYTES, None))

    def _expanded(self, length: int) -> Iterator[tuple[bytes, list[Stretch]]]:
        """Read what comes before the pages of a PAGES_SINCE; raises ArchiveError."""
        if not self._base:
            raise ArchiveError("the engine tells only what has changed, and nobody knows since when")
        head = self._receive(2 * _COUNT.size)
        for count_max, more in ((KEPT_RUNS_MAX, _COUNT.size), (RUNS_PER_RECORD_MAX, 0)):
            [n] = _COUNT.unpack(head[-_COUNT.size:]) if len(head) >= _COUNT.size else [0]
            if n > count_max:
                raise ArchiveError(f"the engine tells of {n} runs at once")
            head += self._receive(n * _RUN_BYTES + more)
        try:
            record = PagesSince.decode(head)
        except ImageError as error:
            raise ArchiveError(f"the engine's stream is damaged: {error.message}") from error
        if len(head) + sum(run.pages for run in record.runs) * PAGE_BYTES != length:
            raise ArchiveError("the engine's stream is damaged: its pages are not those it tells of")
        return self._base.expanded(record)

    def _keep(self, first: int, n: int) -> None:
        """Take note of pages of the base."""
        assert self._base  # noqa: S101
        self._note(self._base.numbers[first:first + n],
                   self._base.hashes[first * HASH_BYTES:(first + n) * HASH_BYTES])

    def _read_literal(self, length: int) -> bytearray:
        content = self._receive(length)
        self._add_literal(content)
        return content

    def _receive(self, length: int) -> bytearray:
        content = bytearray(length)
        del content[self._read(memoryview(content)):]
        return content

    def _add_literal(self, content: bytes | bytearray) -> None:
        self.literals += content
        self.image_bytes += len(content)
        self._unpieced += len(content)
        if len(self.literals) > LITERAL_BYTES_MAX:
            raise ArchiveError(f"the image has more than {LITERAL_BYTES_MAX >> 20} MiB of small records")

    def _note(self, numbers: array[int], hashes: bytes | bytearray) -> None:
        """Take note of the next pages of the stream."""
        if self._unpieced or not self.pieces:
            self.pieces.extend((self._unpieced, 0))
            self._unpieced = 0
        self.pieces[-1] += len(numbers)
        self.pages.extend(numbers)
        self.page_hashes += hashes
        self.image_bytes += len(numbers) * PAGE_BYTES
        if len(self.pages) > PAGES_MAX:
            raise ArchiveError(f"the image is larger than {PAGES_MAX * PAGE_BYTES >> 30} GiB: none such is kept")

    def _keep_new(self, pages: memoryview) -> int:
        """Take note of pages, and move those that are new to the front; return their bytes."""
        n = len(pages) // PAGE_BYTES
        if not n:
            return 0
        found = self._index.add(pages, len(self.hashes) // HASH_BYTES)
        self._note(found.numbers, found.hashes)
        if found.n_fresh == n:
            self.hashes += found.hashes
            return len(pages)
        kept, at = 0, -1
        while (at := found.fresh.find(1, at + 1)) >= 0:
            pages[kept:kept + PAGE_BYTES] = pages[at * PAGE_BYTES:(at + 1) * PAGE_BYTES]
            kept += PAGE_BYTES
            self.hashes += found.hashes[at * HASH_BYTES:(at + 1) * HASH_BYTES]
        return kept

    def _read(self, buffer: memoryview) -> int:
        """Fill the buffer, unless the stream ends or is to end before; return the bytes."""
        filled = 0
        while filled < len(buffer):
            ready = [fd for fd, _ in self._poll.poll()]
            if self._stop in ready:
                self._ended = True
                break
            try:
                length = os.readv(self._fd, [buffer[filled:]])
            except BlockingIOError:
                continue
            except OSError as error:
                raise ArchiveUnavailable(f"reading the image: {error.strerror}") from error
            if not length:
                break
            filled += length
            self.received_bytes += length
        return filled

    def _take(self, number: int, batch: Batch) -> None:
        """Take a batch that is compressed, and hand over what is next."""
        with self._order:
            self._cut[number] = batch
            while following := self._cut.pop(self._n_handed, None):
                self._n_handed += 1
                self._hand_over(following)
