"""Numbers, and the proof that they are the calls': files of kernels as they would be, and the specification's table."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

import pytest

from crd.engine.kernel.proof import RunningKernel, calls_of, is_proven
from crd.engine.kernel.table import SUBTREE, TASK_SELF, architecture_of, named, releases
from crd.errors import FeatureMissing, SettingsError

if TYPE_CHECKING:
    from pathlib import Path

SYMBOLS = "c0100000 T sys_getpid\nc0123456 T sys_checkpoint\nc0123496 t sys_restart\n"
NOT_BUILT_IN = "c0100000 T sys_ni_syscall\nc0100000 W sys_checkpoint\nc0100000 W sys_restart\n"


@pytest.fixture
def kernel(tmp_path: Path):
    def kernel(release: str, machine: str = "i686", *, symbols: str = "", config: str = "", packed_config: str = "",
               sysctl: bool = False) -> RunningKernel:
        (tmp_path / "proc" / "sys" / "kernel").mkdir(parents=True)
        (tmp_path / "proc" / "kallsyms").write_text(symbols)
        if sysctl:
            (tmp_path / "proc" / "sys" / "kernel" / "ckpt_unpriv_allowed").write_text("1\n")
        if packed_config:
            (tmp_path / "proc" / "config.gz").write_bytes(gzip.compress(packed_config.encode()))
        (tmp_path / f"config-{release}").write_text(config)
        return RunningKernel(release, machine, tmp_path / "proc", tmp_path)

    return kernel


@pytest.mark.parametrize(("machine", "release", "checkpoint", "restart", "arguments"), [
    ("i686", "v13", 333, 334, 3), ("i386", "v14-rc", 333, 334, 3), ("i586", "v14", 335, 336, 3),
    ("i686", "v16", 335, 336, 3), ("i686", "v18", 338, 339, 3), ("i686", "v21", 339, 340, 4),
    ("i686", "v23", 342, 343, 4), ("i686", "3.0", 348, 349, 4),
    ("x86_64", "v19", 300, 301, 4), ("x86_64", "v21", 301, 302, 4), ("x86_64", "v23", 304, 305, 4),
    ("x86_64", "3.0", 313, 314, 4), ("s390x", "v14-rc", 328, 329, 3), ("s390", "v16", 330, 331, 3),
    ("s390x", "v18", 332, 333, 3), ("s390x", "v21", 333, 334, 4), ("s390x", "v23", 336, 337, 4),
    ("s390x", "3.0", 341, 342, 4), ("ppc64", "v14-rc", 319, 320, 3), ("ppc", "v18", 323, 324, 3),
    ("ppc64", "v21", 324, 325, 4), ("ppc64", "v23", 346, 347, 4), ("armv7l", "v21", 367, 368, 4),
    ("armv7l", "3.0", 377, 378, 4)])
def test_the_table_of_the_specification(machine, release, checkpoint, restart, arguments):
    calls = named(release, machine)
    assert (calls.checkpoint, calls.restart, calls.arguments) == (checkpoint, restart, arguments)
    assert calls.words(7, 1, 0) == ((7, 1, 0) if arguments == 3 else (7, 1, 0, -1))


def test_flags_came_with_v16_and_v17():
    known = releases("i686")
    assert [release for release, calls in known.items() if not calls.checkpoint_flags] == ["v13", "v14-rc", "v14"]
    assert [release for release, calls in known.items() if not calls.restart_flags] == ["v13", "v14-rc", "v14", "v16"]
    assert {calls.checkpoint_flags for calls in known.values()} == {0, SUBTREE}
    assert {calls.restart_flags for calls in known.values()} == {0, TASK_SELF}


def test_v14_was_not_made_for_x86_64():
    with pytest.raises(SettingsError, match="x86_64") as raised:
        named("v14-rc", "x86_64")
    assert "v19, v21, v23, 3.0" in raised.value.hint


def test_numbers_by_hand():
    calls = named("387/388/3", "riscv64")
    assert (calls.checkpoint, calls.restart, calls.arguments, calls.generation) == (387, 388, 3, "")
    for text in ("387/388", "387/388/5", "-1/2/3", "a/b/3", "99999/1/3"):
        with pytest.raises(SettingsError):
            named(text, "x86_64")


@pytest.mark.parametrize(("machine", "architecture"), [
    ("i386", "i386"), ("i686", "i386"), ("x86_64", "x86_64"), ("aarch64", ""), ("s390x", "s390"), ("ppc64le", "")])
def test_machines(machine, architecture):
    assert architecture_of(machine) == architecture


@pytest.mark.parametrize(("release", "found"), [
    ("2.6.27.4", "v13"), ("2.6.28", "v13"), ("2.6.29-rc8-cr", "v14-rc"), ("2.6.30-rc7", "v16"), ("3.0.0-cr", "3.0")])
@pytest.mark.parametrize("proof", [
    {"symbols": SYMBOLS}, {"sysctl": True}, {"config": "CONFIG_CHECKPOINT=y\n"},
    {"packed_config": "# x\nCONFIG_CHECKPOINT_RESTART=y\n"}], ids=["symbols", "sysctl", "config", "config.gz"])
def test_each_proof_is_enough(kernel, release, found, proof):
    running = kernel(release, **proof)
    assert is_proven(running)
    assert calls_of(running).release == found


@pytest.mark.parametrize("evidence", [
    {}, {"symbols": NOT_BUILT_IN}, {"symbols": "c0123456 T sys_checkpoint\n"},
    {"symbols": "c0123456 T sys_restart_syscall\n"},
    {"config": "# CONFIG_CHECKPOINT is not set\n"}, {"config": "CONFIG_CHECKPOINT_RESTORE=y\n"}])
def test_what_is_no_proof(kernel, evidence):
    running = kernel("2.6.29", **evidence)
    assert not is_proven(running)
    with pytest.raises(FeatureMissing, match="none was tried"):
        calls_of(running)


def test_a_kernel_with_the_calls_but_of_a_release_that_it_does_not_tell(kernel):
    running = kernel("2.6.33", symbols=SYMBOLS)
    assert not is_proven(running)
    with pytest.raises(FeatureMissing, match="of which release is not known"):
        calls_of(running)
    assert calls_of(running, "v21").checkpoint == 339


def test_a_kernel_of_today_is_not_even_looked_at(kernel):
    assert not is_proven(kernel("6.1.0-amd64", "x86_64", symbols=SYMBOLS))


def test_a_broken_configuration_proves_nothing(kernel):
    running = kernel("2.6.29")
    (running.proc / "config.gz").write_bytes(b"\x1f\x8b\x08garbage")
    assert running.proof() == ""
