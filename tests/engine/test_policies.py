"""Memory policies: on which nodes pages lie.  One node is enough to have some."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crd.engine.userspace.mem import policies
from crd.image.profile import ThreadPolicy, Vma
from tests.engine.images import restarted, taken_with
from tests.engine.programs import interpreted
from tests.engine.test_changes import records
from tests.engine.test_restart_failures import changed
from tests.support.builders import make_vma
from tests.support.victims import until

if TYPE_CHECKING:
    from crd.image.codec import Record

pytestmark = pytest.mark.root

FOLLOWS_POLICIES = """
import ctypes, mmap, os, threading
MBIND, SET_MEMPOLICY = 237, 238
syscall = ctypes.CDLL(None, use_errno=True).syscall
first = ctypes.byref(ctypes.c_ulong(1))
heirloom = bytearray(1 << 20)
def bound(mode):
    area = mmap.mmap(-1, 1 << 16, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area[:] = b"x" * len(area)
    address = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(area)))
    assert syscall(MBIND, address, 1 << 16, mode, first, 64, 0) == 0
    return area, address.value
areas = [bound(mode) for mode in (2, 3, 1, 2 | 1 << 15)]
entered = threading.Event()
def live():
    assert syscall(SET_MEMPOLICY, 2, first, 64) == 0
    entered.set()
    rest()
threading.Thread(target=live).start()
entered.wait()
assert syscall(SET_MEMPOLICY, 4, None, 0) == 0
if os.fork() == 0: assert syscall(SET_MEMPOLICY, 0, None, 0) == 0
open(f"addresses{os.getpid()}", "w").write(" ".join(f"{address:x}" for _, address in areas))
rest()
"""


def numa_maps(where: str) -> dict[str, str]:
    return {line.split()[0]: line.split()[1] for line in Path(f"/proc/{where}/numa_maps").read_text().splitlines()}


def followed(family: list[int], addresses: list[str]) -> list[list[str]]:
    """Return the policies of the areas, and of all threads, of each process."""
    found = []
    for pid in family:
        shown = numa_maps(str(pid))
        threads = sorted(int(path.name) for path in Path(f"/proc/{pid}/task").iterdir())
        found.append([*(shown[address] for address in addresses),
                      *(next(iter(numa_maps(f"{pid}/task/{tid}").values())) for tid in threads)])
    return found


@pytest.mark.parametrize("method", ["copy", "snapshot"])
def test_areas_and_threads_follow_their_policies_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                       method: str) -> None:
    monkeypatch.setattr(policies, "matter", lambda: True)
    with interpreted(tmp_path, FOLLOWS_POLICIES) as program:
        until("both", lambda: sum(bool(path.read_text()) for path in tmp_path.glob("addresses*")) == 2)
        addresses = (tmp_path / f"addresses{program.pid}").read_text().split()
        before = followed(program.family(), addresses)
        assert before == [["bind:0", "interleave:0", "prefer:0", "bind=static:0", "local", "bind:0"],
                          ["bind:0", "interleave:0", "prefer:0", "bind=static:0", "default"]]
        image, _ = taken_with(program, method=method)
        assert [record.policy for record in records(image, ThreadPolicy)] == ["local", "bind:0"]
        program.kill_tree()
        assert restarted(image, program).notes == ()
        assert followed(program.family(), addresses) == before


def test_nodes_that_are_not_to_be_had_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def move(record: Record) -> None:
        if isinstance(record, Vma):
            record.flags = record.flags.replace("bind:0", "bind:0-9")
        elif isinstance(record, ThreadPolicy):
            record.policy = record.policy.replace("bind:0", "bind:0-9")

    monkeypatch.setattr(policies, "matter", lambda: True)
    with interpreted(tmp_path, FOLLOWS_POLICIES) as program:
        image, _ = taken_with(program, method="copy")
        program.kill_tree()
        [note] = restarted(changed(image, move), program).notes
        assert "bind:0-9" in note
        program.assert_unharmed()


@pytest.mark.parametrize("policy", ["", "weird:0", "bind:", "bind:99999999", "bind:0-99999999", "bind:0-x", "bind:x",
                                    "bind=weird:0", "0", "=", "bind:" + "1," * 5000])
def test_a_policy_that_nobody_knows_is_none(policy: str) -> None:
    area = make_vma(flags=f"rd wr np={policy}")
    assert policies.of_area(area) == policy
    assert policies._parsed(policy) is None
