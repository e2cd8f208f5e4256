"""The extended state of the processor (XSAVE): which components it has."""

from __future__ import annotations

_XCR0 = slice(464, 472)
"""The software-reserved bytes of NT_X86_XSTATE hold XCR0 (arch/x86/include/uapi/asm/sigcontext.h)."""

COMPONENTS = {0: "x87", 1: "SSE", 2: "AVX", 3: "MPX", 4: "MPX", 5: "AVX-512", 6: "AVX-512", 7: "AVX-512",
              9: "protection keys", 11: "shadow stacks", 12: "shadow stacks", 17: "AMX", 18: "AMX", 19: "APX"}
"""By bit of XCR0 (Intel SDM 1, 13.1)."""


def enabled_components(xstate: bytes) -> int:
    """Return XCR0: the components that the kernel had enabled."""
    return int.from_bytes(xstate[_XCR0], "little")
