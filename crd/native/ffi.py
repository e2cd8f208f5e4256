"""The compiled module; nothing outside this package may import it."""

from crd.native._core import ffi, lib

__all__ = ["ffi", "lib"]
