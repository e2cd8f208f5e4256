"""Ports of loopback for servers that are told theirs before they begin, and take a while to."""

from __future__ import annotations

import random
import socket
from pathlib import Path

_LOWEST = 10_000


def free_ports(n: int) -> list[int]:
    """Return ports that nobody has just now, and that the kernel gives to nobody who does not ask for them."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = range(_LOWEST, first) if first > 2 * _LOWEST else range(_LOWEST, 1 << 16)
    found: list[int] = []
    for port in random.SystemRandom().sample(ports, len(ports)):
        if len(found) < n and _is_free(port):
            found.append(port)
    return found


def free_port() -> int:
    """Return one."""
    [port] = free_ports(1)
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
