"""The fork server by itself, its socket as standard input: ``python forks_alone.py GRACE_S``.

Its services are told by their first argument what to be: ``sleep``, ``deaf`` (to SIGTERM; says so), ``exit`` with the
code in the second, ``raise``, ``say`` (what it reads, writes to its log, and holds open).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

from crucible_emu.rack.forkserver import ForkServer


def service(arguments: list[str]) -> None:
    match arguments[0]:
        case "sleep":
            time.sleep(600)
        case "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("deaf", flush=True)
            time.sleep(600)
        case "exit":
            sys.exit(int(arguments[1]))
        case "raise":
            raise LookupError("what nobody foresaw")
        case "say":
            descriptors = sorted(map(int, os.listdir("/proc/self/fd")))[:-1]  # the last one lists them
            print(sys.stdin.read(), descriptors, sys.argv)
            print("for the log", file=sys.stderr)


if __name__ == "__main__":
    ForkServer(socket.socket(fileno=os.dup(0)), service, float(sys.argv[1])).run()
