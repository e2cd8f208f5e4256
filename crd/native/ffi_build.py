"""Build the compiled module: the declarations in ``cdef/`` in front of the C sources in ``csrc/``."""

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
TOPICS = ("core", "tracee", "memory", "pagemap", "clone", "syscall", "stubs", "threads", "pages", "frames", "numbers",
          "tracking", "stream", "files", "allocator")
ARCH = HERE / "csrc" / "arch" / "x86_64"
SOURCES = [*(HERE / "csrc").glob("*.c"), *ARCH.glob("*.c")]

ffibuilder = FFI()
for topic in TOPICS:
    ffibuilder.cdef((HERE / "cdef" / f"{topic}.h").read_text())
ffibuilder.set_source(
    "crd.native._core",
    '#include <malloc.h>\n#include "core.h"',
    sources=sorted(str(source.relative_to(ROOT)) for source in SOURCES),
    include_dirs=[str((HERE / "csrc").relative_to(ROOT))],
    depends=[str(path.relative_to(ROOT)) for path in HERE.rglob("*.[hS]")],
    extra_compile_args=["-std=c11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-missing-field-initializers",
                        f"-Wa,-I,{ARCH.relative_to(ROOT)}"],
    libraries=["zstd"],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffibuilder.compile(verbose=True)
