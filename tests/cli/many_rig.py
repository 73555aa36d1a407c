"""Many Downstairs for the tests of commands: small regions, free ports, waiting for other processes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

SMALL = ("--create", "--extent-size", 16, "--extent-count", 4, "--control", "127.0.0.1:0", "--json")
WAIT_S = 60
PORT_MIN, PORT_MAX = 20100, 28600


def free_base(count: int = 3) -> int:
    """A port base whose data and repair ports are free now: below those that the system hands out, and elsewhere for
    each process of tests, since another one may look at the same time."""
    bases = range(PORT_MIN, PORT_MAX, 97)
    first = os.getpid() % len(bases)
    for base in [*bases[first:], *bases[:first]]:
        ports = [port + above for port in range(base, base + 10 * count, 10) for above in (0, 4000)]
        if all(is_free(port) for port in ports):
            return base
    raise AssertionError("no ports are free")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for other processes."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
