"""What can go wrong with files: full disks, failing disks, cancellations, kill -9, and what others put there."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from crd.archive.archive import Archive
from crd.archive.manifest import NO_PACK
from crd.archive.names import image_key, pack_key
from crd.archive.stores import local
from crd.archive.stores.local import LocalStore
from crd.errors import ArchiveError, ArchiveFull, ArchiveUnavailable, BlobCorrupt, BlobMissing
from crd.ids import Crid

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(home: Path) -> LocalStore:
    return LocalStore(home)


def failing(number: int) -> Callable[..., Any]:
    def fail(*_args: Any, **_keywords: Any) -> None:
        raise OSError(number, os.strerror(number))

    return fail


FAILURES = [(errno.ENOSPC, ArchiveFull), (errno.EDQUOT, ArchiveFull), (errno.EIO, ArchiveUnavailable),
            (errno.EROFS, ArchiveUnavailable)]


@pytest.mark.parametrize(("number", "kind"), FAILURES)
async def test_a_write_that_fails_leaves_nothing(store: LocalStore, home: Path, monkeypatch: pytest.MonkeyPatch,
                                                 number: int, kind: type[ArchiveError]) -> None:
    upload = await store.create("a")
    await upload.write([b"begun"])
    monkeypatch.setattr(local.os, "writev", failing(number))
    with pytest.raises(kind) as failed:
        await upload.write([b"more"])
    assert os.strerror(number) in failed.value.message
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(("number", "kind"), FAILURES)
@pytest.mark.parametrize("call", ["fdatasync", "link", "fsync"])
async def test_a_commit_that_fails_leaves_nothing(store: LocalStore, home: Path, monkeypatch: pytest.MonkeyPatch,
                                                  call: str, number: int, kind: type[ArchiveError]) -> None:
    upload = await store.create("a")
    await upload.write([b"whole"])
    monkeypatch.setattr(local.os, call, failing(number))
    with pytest.raises(kind):
        await upload.commit()
    assert list(home.iterdir()) == []
    await upload.abort()


async def test_everything_is_written_however_little_the_kernel_takes(store: LocalStore,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    writev = os.writev
    monkeypatch.setattr(local.os, "writev", lambda fd, parts: writev(fd, [parts[0][:7]]))
    upload = await store.create("a")
    parts = [bytes([number]) * number for number in range(40)]
    await upload.write(parts)
    await upload.commit()
    assert await store.read("a", 0, 10_000) == b"".join(parts)


async def test_what_is_flushed_early_is_all_there(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "_FLUSH_BYTES", 5000)
    upload = await store.create("a")
    for number in range(20):
        await upload.write([bytes([number]) * 1999])
    await upload.commit()
    assert await store.read("a", 0, 100_000) == b"".join(bytes([number]) * 1999 for number in range(20))


@pytest.mark.parametrize("call", ["fdatasync", "fsync"])
async def test_a_commit_that_is_cancelled_leaves_nothing(store: LocalStore, home: Path, call: str,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    reached, go_on = threading.Event(), threading.Event()
    original = getattr(os, call)

    def slowly(fd: int) -> None:
        reached.set()
        go_on.wait()
        original(fd)

    monkeypatch.setattr(local.os, call, slowly)
    upload = await store.create("a")
    await upload.write([b"whole"])
    committing = asyncio.create_task(upload.commit())
    await asyncio.to_thread(reached.wait)
    committing.cancel()
    done, _ = await asyncio.wait([committing], timeout=0.05)
    assert not done, "the thread still works on the file"
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await committing
    assert list(home.iterdir()) == []


async def test_an_upload_that_is_cancelled_while_it_begins_leaves_nothing(store: LocalStore, home: Path,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    reached, go_on = threading.Event(), threading.Event()
    original = os.open

    def slowly(*arguments: Any) -> int:
        reached.set()
        go_on.wait()
        return original(*arguments)

    monkeypatch.setattr(local.os, "open", slowly)
    creating = asyncio.create_task(store.create("a"))
    await asyncio.to_thread(reached.wait)
    creating.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert list(home.iterdir()) == []


async def test_a_disk_that_fails_when_it_is_asked_for_an_object(store: LocalStore,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", failing(errno.EIO))
    with pytest.raises(ArchiveUnavailable):
        await store.is_current("a")


async def test_an_upload_that_is_dropped_leaves_nothing(store: LocalStore, home: Path) -> None:
    upload = await store.create("a")
    await upload.write([b"secret"])
    await upload._file.close()
    del upload
    gc.collect()
    assert list(home.iterdir()) == []


async def test_what_others_put_there_neither_hangs_nor_leads_astray(store: LocalStore, home: Path) -> None:
    os.mkfifo(home / "fifo")
    (home / "directory").mkdir()
    (home / "link").symlink_to("/etc/passwd")
    for key in ("fifo", "directory", "link"):
        with pytest.raises(BlobCorrupt):
            await store.read(key, 0, 10)
        with pytest.raises(BlobCorrupt):
            await store.size(key)
    assert await store.objects() == {}


async def test_an_archive_lists_only_what_it_names(home: Path) -> None:
    async with Archive(LocalStore(home)) as archive:
        for name in ("00000000000000a1.image", "000000000000000A.image", "1.image", "notes", "00000000000000a2.image2"):
            (home / name).write_bytes(b"x" * 10)
        assert await archive.crids() == [0xA1]
        assert (await archive.size()).images == 1
        with pytest.raises(BlobCorrupt) as damaged:
            await archive.source(Crid(0xA1))
        assert damaged.value.details["key"] == "00000000000000a1.image"
        with pytest.raises(BlobMissing):
            await archive.source(Crid(2))


async def test_a_directory_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name in ("file", "link", "dangling"):
        with pytest.raises(ArchiveUnavailable):
            LocalStore(tmp_path / name)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.root
async def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", 12345, 12345)
    with pytest.raises(ArchiveUnavailable) as refused:
        LocalStore(tmp_path / "theirs")
    assert "12345" in refused.value.message


@pytest.mark.root
async def test_a_full_disk_is_told_from_a_failing_one(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "crd-test", tmp_path], check=True)
    try:
        store = LocalStore(tmp_path)
        upload = await store.create("a")
        with pytest.raises(ArchiveFull) as full:
            await upload.write([os.urandom(700_000), os.urandom(700_000)])
        assert "forget" in full.value.hint
        assert await store.clear_torn() == 0
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


WRITER = """
    import asyncio, os, random, struct, sys
    from pathlib import Path
    from crd.archive.archive import Archive
    from crd.archive.stores.local import LocalStore
    from crd.ids import Crid

    async def main():
        async with Archive(LocalStore(Path(sys.argv[1])), needs=Path(sys.argv[3])) as archive:
            for crid in range(int(sys.argv[2]), 1 << 40):
                read_end, write_end = os.pipe()
                sink = await archive.sink(Crid(crid - 1))
                rest = b"".join(random.Random(n).randbytes(100_000 + n % 7 * 300_000) for n in (crid - 1, crid))
                data = struct.pack("<II", 1, len(rest)) + rest
                _, stored = await asyncio.gather(asyncio.to_thread(write, write_end, data), store(sink, read_end, crid))
                await sink.abort()
                print(crid, stored.digest, flush=True)
                if crid % 3 == 0:
                    await archive.forget(Crid(crid - 2))

    def write(fd, data):
        with open(fd, "wb") as pipe:
            pipe.write(data)

    async def store(sink, fd, crid):
        await sink.drain(fd)
        os.close(fd)
        return await sink.commit(Crid(crid))

    asyncio.run(main())
"""


async def test_kill_9_loses_nothing_and_leaves_nothing_torn(home: Path) -> None:
    acknowledged: dict[int, str] = {}
    crid, runs, needs = 1, 0, home.parent / "needs.db"
    for n_wanted in (1, 3, 2, 5, 4, 1):
        with subprocess.Popen([sys.executable, "-c", textwrap.dedent(WRITER), str(home), str(crid), str(needs)],
                              stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout
            lines = [writer.stdout.readline() for _ in range(n_wanted)]
            writer.send_signal(signal.SIGKILL)
            lines += [line for line in writer.stdout if line.endswith("\n")]
        acknowledged |= {int(number): digest for number, digest in map(str.split, lines)}
        async with Archive(LocalStore(home), needs=needs) as archive:
            there = await archive.crids()
            kept = {number for number in acknowledged if number % 3 != 1}
            assert kept <= set(there)
            runs += 1
            assert len(set(there) - set(acknowledged)) <= runs, "at most one a run was not acknowledged"
            for number in there:
                stored = await archive.stored(number)
                await (await archive.source(number)).verify(acknowledged.get(number, stored.digest))
            needed = {pack for number in there for pack, _ in (await archive.source(number)).manifest.packs}
            names = {*map(image_key, there), *map(pack_key, needed - {NO_PACK})}
            assert {path.name for path in home.iterdir() if path.suffix != ".token"} == names
            crid = max(there) + 1
