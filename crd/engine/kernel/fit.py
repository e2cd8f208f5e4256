"""Whether an image is one for the running kernel: what that refuses with EINVAL (spec section 5.3), with the reason."""

from __future__ import annotations

import os
import struct
from typing import IO, TYPE_CHECKING

from crd.engine.kernel.table import architecture_of
from crd.errors import ImageVersionUnsupported
from crd.image.front import with_kernel
from crd.image.generations import PREFIX_BYTES, Generation

if TYPE_CHECKING:
    from crd.engine.kernel.proof import RunningKernel
    from crd.engine.kernel.table import CallNumbers
    from crd.image.header import Header
    from crd.image.inspection import Inspection


def fit(image: Inspection, file: IO[bytes], kernel: RunningKernel, numbers: CallNumbers, *,
        force_version: bool = False) -> None:
    """Check that the kernel takes an image.

    Args:
        image: which is whole.
        file: in which it is.
        kernel: that runs.
        numbers: of its calls.
        force_version: an image of another version of the kernel is changed to say that it is this one's.  Nothing else
            is changed, and what else the kernel compares must fit.

    Raises:
        ImageVersionUnsupported: it does not.
    """
    header = image.header
    assert header is not None  # noqa: S101  # it is whole
    _check_format(image, header, numbers)
    _check_processor(image, header, file, kernel)
    if header.kernel == kernel.numbers:
        return
    if not force_version:
        raise ImageVersionUnsupported(
            f"the image was written by kernel {header.kernel}: this one is {kernel.numbers}, and a Linux-CR kernel "
            "restarts its own images only", hint="If you know that both save the same things in the same way: "
            "--force-version.")
    front = os.pread(file.fileno(), PREFIX_BYTES, 0)
    os.pwrite(file.fileno(), with_kernel(front, kernel.numbers), 0)


def _check_format(image: Inspection, header: Header, numbers: CallNumbers) -> None:
    if numbers.generation not in {"", image.generation}:
        raise ImageVersionUnsupported(f"the image is of {image.generation} ({image.versions}), and the kernel's calls "
                                      f"are of {numbers.release}, which is {numbers.generation}")
    if numbers.revisions and header.rev not in numbers.revisions:
        raise ImageVersionUnsupported(f"the image has format revision {header.rev}, and kernels of {numbers.release} "
                                      f"take {' or '.join(map(str, numbers.revisions))}")


def _check_processor(image: Inspection, header: Header, file: IO[bytes], kernel: RunningKernel) -> None:
    here = architecture_of(kernel.machine)
    if architecture_of(header.machine) != here:
        raise ImageVersionUnsupported(f"the image was written on {header.machine or 'an unknown machine'}: this one is "
                                      f"{kernel.machine}")
    for feature, has in _features(image, file).items() if here in {"i386", "x86_64"} else ():
        if has != (feature in kernel.processor_flags):
            raise ImageVersionUnsupported(f"the image was written on a processor {'with' if has else 'without'} "
                                          f"{feature}, which this one {'lacks' if has else 'has'}")


def _features(image: Inspection, file: IO[bytes]) -> dict[str, bool]:
    """Return what HEAD_ARCH says of an x86 processor; gen-D's is not known."""
    record = next((entry for entry in image.records if entry.name == "HEAD_ARCH"), None)
    if record is None or record.payload_bytes != 8 or image.generation == Generation.D:
        return {}
    frame_bytes = image.records[1].offset - image.records[0].payload_bytes
    order = "<" if image.byte_order == "little" else ">"
    has_fxsr, has_xsave = struct.unpack(f"{order}HH", os.pread(file.fileno(), 4, record.offset + frame_bytes))
    return {"fxsr": bool(has_fxsr), "xsave": bool(has_xsave)}
