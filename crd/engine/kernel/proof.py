"""Whether the running kernel has Linux-CR's system calls, found without ever making one."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from crd.engine.kernel.table import CallNumbers, named, releases
from crd.errors import FeatureMissing

if TYPE_CHECKING:
    from collections.abc import Iterable

_SYMBOLS = {"sys_checkpoint", "sys_restart"}
_OPTION = re.compile(rb"^CONFIG_CHECKPOINT(_RESTART)?=y$", re.MULTILINE)
"""Not CONFIG_CHECKPOINT_RESTORE, which mainline has had since 3.3 and which has nothing to do with it."""
_HINT = ("Name the release of the patches in engine.linux_cr (--linux-cr) if you know that this kernel has them; "
         "else use the userspace engine.")


@dataclass(frozen=True, slots=True)
class RunningKernel:
    """What can be read about the kernel that runs.

    Attributes:
        release, machine: as uname(2) has them.
        proc: where proc(5) is mounted.
        boot: where the configurations of kernels are.
    """

    release: str = field(default_factory=lambda: os.uname().release)
    machine: str = field(default_factory=lambda: os.uname().machine)
    proc: Path = Path("/proc")
    boot: Path = Path("/boot")

    @property
    def numbers(self) -> str:
        """Major, minor and patch, as the header of an image has them."""
        return ".".join((*re.findall(r"\d+", self.release)[:3], "0", "0")[:3])

    @property
    def version(self) -> str:
        """``2.6.29``, or ``3.0``."""
        numbers = re.findall(r"\d+", self.release)
        return ".".join(numbers[:3] if numbers[:1] == ["2"] else numbers[:2])

    @property
    def may_have_calls(self) -> bool:
        """Whether the patches were ever made for a kernel that old: 3.0 was the last."""
        return tuple(map(int, [*self.version.split("."), "0"][:2])) <= (3, 0)

    @property
    def processor_flags(self) -> frozenset[str]:
        """What x86 processors can do, by the names of cpuinfo."""
        with suppress(OSError):
            for line in (self.proc / "cpuinfo").read_text().splitlines():
                name, _, flags = line.partition(":")
                if name.strip() == "flags":
                    return frozenset(flags.split())
        return frozenset()

    def proof(self) -> str:
        """Return what shows that it has the calls, "" if nothing does."""
        if self._symbols() == _SYMBOLS:
            return "its symbols sys_checkpoint and sys_restart"
        if (self.proc / "sys/kernel/ckpt_unpriv_allowed").exists():
            return "its sysctl kernel.ckpt_unpriv_allowed"
        told_by = (path for path, text in self._configurations() if _OPTION.search(text))
        return next((f"its configuration in {path}" for path in told_by), "")

    def _symbols(self) -> set[str]:
        """Those of the two that are functions: a kernel built without them has weak ones (W) that say ENOSYS."""
        found = set()
        try:
            with (self.proc / "kallsyms").open() as lines:
                for line in lines:
                    words = line.split()
                    if len(words) == 3 and words[1] in "tT" and words[2] in _SYMBOLS:
                        found.add(words[2])
        except OSError:
            pass
        return found

    def _configurations(self) -> Iterable[tuple[Path, bytes]]:
        for path, unpacked in ((self.proc / "config.gz", gzip.decompress),
                               (self.boot / f"config-{self.release}", bytes)):
            try:
                yield path, unpacked(path.read_bytes())
            except (OSError, EOFError, zlib.error):
                continue


def calls_of(kernel: RunningKernel, told: str = "") -> CallNumbers:
    """Return the numbers of the running kernel's calls.

    Args:
        kernel: that runs.
        told: by the operator (``engine.linux_cr``): a release or numbers; "" to go by what the kernel shows.

    Raises:
        FeatureMissing: nothing proves that it has the calls, or nothing tells which release they are of.
        SettingsError: what was told is no release for this machine.
    """
    if told:
        return named(told, kernel.machine)
    proof = kernel.proof()
    if not proof:
        raise FeatureMissing(f"nothing shows that kernel {kernel.release} has Linux-CR's system calls; elsewhere their "
                             "numbers are other calls: none was tried", hint=_HINT, kernel=kernel.release)
    fitting = [calls for calls in releases(kernel.machine).values() if kernel.version in calls.kernels]
    if len(fitting) != 1:
        raise FeatureMissing(f"kernel {kernel.release} has Linux-CR's system calls ({proof}), but of which release is "
                             f"not known, and so not their numbers on {kernel.machine}: none was tried", hint=_HINT,
                             kernel=kernel.release)
    return fitting[0]


def is_proven(kernel: RunningKernel) -> bool:
    """Whether the kernel's calls are there and known, without a word of the operator."""
    try:
        return kernel.may_have_calls and bool(calls_of(kernel))
    except FeatureMissing:
        return False
