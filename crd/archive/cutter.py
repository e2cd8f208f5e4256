"""A stream cut into compressed frames: threads take turns to read it, and compress side by side.

The thread that has read a block compresses it, while it is in that core's cache, and all its frames in one call.  So
nothing but compressed frames is handed from thread to thread, and that only once in several blocks
(tests/bench/archive_throughput.py).
"""

from __future__ import annotations

import os
import select
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import zstandard

from crd.archive.layout import ENTRY, FRAME_BYTES, checksum
from crd.errors import ArchiveUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCK_BYTES = 4 * FRAME_BYTES
_BATCH_BLOCKS = 4
_BLOCKS_IN_FLIGHT_PER_THREAD = 8
"""Read but not yet stored; more than a batch, or nothing would be handed over."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Neighbouring blocks of the stream.

    Attributes:
        frames: compressed, in order.
        entries: of these frames in the object's table.
        raw_bytes: of the stream.
        blocks: how many.
    """

    frames: list[bytes]
    entries: bytes
    raw_bytes: int
    blocks: int


class FrameCutter:
    """Cuts what comes out of a descriptor into batches of frames, in bounded memory."""

    def __init__(self, fd: int, hand_over: Callable[[Batch], object], *, level: int, threads: int) -> None:
        """Cut a stream.

        Args:
            fd: where it comes from: a pipe or anything else that can be polled.  It stays the caller's.
            hand_over: takes the batches, in order, each from one of the threads; ``stored`` says when it is done.
            level: of zstd.
            threads: how many will ``work``.
        """
        self._fd = fd
        self._hand_over = hand_over
        self._level = level
        self._threads = threads
        self._room = threading.Semaphore(_BLOCKS_IN_FLIGHT_PER_THREAD * threads)
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._poll.register(self._stop, select.POLLIN)
        self._turn = threading.Lock()  # who reads: guards the poll and these two
        self._ended = False
        self._n_read = 0
        self._order = threading.Lock()  # who hands over: guards these three
        self._cut: dict[int, Batch] = {}
        self._n_taken = 0
        self._ready: list[Batch] = []

    def stop(self) -> None:
        """Make ``work`` return soon, in all threads."""
        self._ended = True
        os.eventfd_write(self._stop, 1)
        self._room.release(self._threads)

    def close(self) -> None:
        """Free what it holds; only when ``work`` has returned in all threads."""
        os.close(self._stop)

    def stored(self, batch: Batch) -> None:
        """Make room for as much as a batch had."""
        self._room.release(batch.blocks)

    def rest(self) -> Batch | None:
        """Return what was too little to be handed over; only when ``work`` has returned in all threads."""
        return _joined(self._ready) if self._ready else None

    def work(self) -> None:
        """Cut the stream to its end, or until ``stop``; each of the threads runs this once.

        Raises:
            ArchiveUnavailable: the stream cannot be read.
        """
        block = memoryview(bytearray(BLOCK_BYTES))
        compressor = zstandard.ZstdCompressor(level=self._level)
        try:
            while True:
                self._room.acquire()
                with self._turn:
                    length = 0 if self._ended else self._read(block)
                    if not length:
                        self._ended = True
                        return
                    number = self._n_read
                    self._n_read += 1
                self._take(number, _compress(compressor, block[:length]))
        except BaseException:
            self.stop()
            raise
        finally:
            self._room.release()

    def _read(self, block: memoryview) -> int:
        """Fill the block, unless the stream ends before; 0 if it has ended or is to."""
        filled = 0
        while filled < len(block):
            ready = [fd for fd, _ in self._poll.poll()]
            if self._stop in ready:
                return 0
            try:
                length = os.readv(self._fd, [block[filled:]])
            except BlockingIOError:
                continue
            except OSError as error:
                raise ArchiveUnavailable(f"reading the image: {error.strerror}") from error
            if not length:
                break
            filled += length
        return filled

    def _take(self, number: int, block: Batch) -> None:
        """Take a block that is cut, and hand over what is next."""
        with self._order:
            self._cut[number] = block
            while following := self._cut.pop(self._n_taken, None):
                self._n_taken += 1
                self._ready.append(following)
                if len(self._ready) == _BATCH_BLOCKS:
                    self._hand_over(_joined(self._ready))
                    self._ready = []


def _joined(blocks: list[Batch]) -> Batch:
    return Batch([frame for block in blocks for frame in block.frames], b"".join(block.entries for block in blocks),
                 sum(block.raw_bytes for block in blocks), len(blocks))


def _compress(compressor: zstandard.ZstdCompressor, block: memoryview) -> Batch:
    frames, entries = [], bytearray()
    raw: list[Any] = [block[start:start + FRAME_BYTES] for start in range(0, len(block), FRAME_BYTES)]
    compressed = compressor.multi_compress_to_buffer(raw, threads=1)
    for index, part in enumerate(raw):
        frame = compressed[index].tobytes()
        entries += ENTRY.pack(len(frame), len(part), checksum(frame))
        frames.append(frame)
    return Batch(frames, bytes(entries), len(block), 1)
