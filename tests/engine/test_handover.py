"""The snapshot child hands its pages over: they are those that copying the stopped target finds."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from crd.engine.api import CheckpointOptions, checkpoint
from crd.engine.crid import CridCounter
from crd.engine.userspace.mem import handover
from crd.engine.userspace.mem.handover import Handover
from crd.errors import CrdError
from crd.image.profile import PAGE_BYTES, Pages
from crd.image.reader import ImageReader
from crd.image.verify import verified
from tests.engine.programs import compiled

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.victims import Program

pytestmark = pytest.mark.root

# Every third page is filled, every third one touched but zero; a part may not be read, a part only written.
SPARSE = r"""
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 3000 };

int main(void)
{
    char *memory = mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    for (int page = 0; page < PAGES; page += 3) {
        memset(memory + page * PAGE, 1 + page % 250, PAGE / 2);
        *(volatile char *)(memory + (page + 1) * PAGE) = 0;
    }
    *(memory + (size_t)PAGES * PAGE - 1) = 7; /* only its very last byte is not zero */
    mprotect(memory + 600 * PAGE, 300 * PAGE, PROT_NONE);
    mprotect(memory + 1200 * PAGE, 300 * PAGE, PROT_READ);
    fclose(fopen("ready", "w"));
    for (;;)
        pause();
}
"""


def pages(program: Program, method: str) -> dict[int, bytes]:
    """Take an image of the program, and return its pages by address."""
    path = program.directory / method
    with path.open("wb") as file:
        checkpoint(program.pid, file.fileno(), crids=CridCounter(path.parent / "crid"),
                   options=CheckpointOptions(method=method))
    found: dict[int, bytes] = {}
    with path.open("rb") as file:
        for record in verified(ImageReader(file)):
            if isinstance(record, Pages):
                content = bytes(record.data)
                for run in record.runs:
                    for page in range(run.pages):
                        found[run.address + page * PAGE_BYTES], content = content[:PAGE_BYTES], content[PAGE_BYTES:]
    return found


@pytest.mark.parametrize("windows", [(32 << 10, 512, 400), (64, 8, 3), (1, 1, 1)], ids=["usual", "small", "smallest"])
def test_the_pages_are_those_that_copying_finds(tmp_path: Path, windows: tuple[int, int, int],
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(("_WINDOW_PAGES", "_WINDOW_RUNS", "_BATCH_RUNS"), windows, strict=True):
        monkeypatch.setattr(handover, name, value)
    with compiled(tmp_path, SPARSE) as program:
        handed, copied = pages(program, "snapshot"), pages(program, "copy")
        assert sum(content[:1] != b"\0" for content in copied.values()) >= 1000
        changed = {address for address in handed.keys() | copied.keys() if handed.get(address) != copied.get(address)}
        assert len(changed) <= 2, "more than the stack of the thread that was asked"
        program.assert_unharmed()


def interfere(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Send a signal to the child when its second record is due; return what becomes its pid."""
    sent: list[int] = []
    move = Handover._move

    def moved(self: Handover, *arguments: object) -> None:
        if not sent:
            sent.append(self._pid)
        elif len(sent) == 1:
            sent.append(number)
            os.kill(self._pid, number)
        move(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Handover, "_move", moved)
    return sent


def test_a_child_that_is_killed_ends_the_checkpoint_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with compiled(tmp_path, SPARSE) as program:
        sent = interfere(monkeypatch, signal.SIGKILL)
        with pytest.raises(CrdError):
            pages(program, "snapshot")
        assert sent[1:] == [signal.SIGKILL]
        program.assert_unharmed()
        monkeypatch.undo()
        assert pages(program, "snapshot")


def test_a_child_that_is_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with compiled(tmp_path, SPARSE) as program:
        before = pages(program, "copy")
        sent = interfere(monkeypatch, signal.SIGSTOP)
        after = pages(program, "snapshot")
        assert sent[1:] == [signal.SIGSTOP]
        assert len(before.items() ^ after.items()) <= 4
        program.assert_unharmed()
