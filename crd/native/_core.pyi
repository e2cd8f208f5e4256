# The compiled module as mypy sees it: cdef/*.h declares it, and only the wrappers beside this file call it.
from typing import Any

ffi: Any
lib: Any
