"""Every kind of object that descriptors may be open on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crd.engine.userspace.fds.pipe import Pipes
from crd.engine.userspace.fds.regular import RegularFiles

if TYPE_CHECKING:
    from crd.engine.userspace.fds.kind import Kind

KINDS: tuple[Kind, ...] = (Pipes(), RegularFiles())
"""In the order in which their records stand in an image: what refers to others comes behind them."""
