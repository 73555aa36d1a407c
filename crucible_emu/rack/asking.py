"""Asking a running supervisor, from a command: the other end of :mod:`crucible_emu.rack.control`."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from crucible_emu.errors import UsageError
from crucible_emu.rack import presence

LINE_BYTES_MAX = 64 * 1024
ANSWER_BYTES_MAX = 4 << 20
ANSWER_S_MAX = 180.0
"""Longer than a supervisor waits for anything; one that is silent for so long stands still."""


class NotRunning(UsageError):
    """No supervisor answers in this directory, or the one that does is about to end."""


class Refused(UsageError):
    """The supervisor said that it cannot be done; the message is its sentence."""


def ask(directory: Path, request: dict[str, Any], *, timeout_s: float = ANSWER_S_MAX) -> dict[str, Any]:
    """The rack as the supervisor describes it when ``request`` has been done.

    Raises :class:`NotRunning` where nobody answers (or stops answering), :class:`Refused` with the supervisor's own
    sentence, and :class:`UsageError` where there is no answer within ``timeout_s``.
    """
    caller = presence.connect(directory)
    if caller is None:
        raise NotRunning(f"the rack in {directory} is not running: start it with crucible-emu rack up {directory}")
    with caller:
        caller.settimeout(timeout_s)
        try:
            caller.sendall(json.dumps(request).encode() + b"\n")
            answer = _line(caller)
        except ConnectionError:
            answer = b""
        except TimeoutError:
            raise UsageError(
                f"the supervisor of the rack in {directory} has not answered for {timeout_s:.0f} s: look at its log"
            ) from None
    if not answer:
        raise NotRunning(f"the supervisor of the rack in {directory} ended before it answered: look at its log")
    document = json.loads(answer)
    if document.get("leaving"):
        raise NotRunning(document["error"])
    if "error" in document:
        raise Refused(document["error"])
    rack: dict[str, Any] = document["rack"]
    return rack


def _line(caller: socket.socket) -> bytes:
    found = bytearray()
    while not found.endswith(b"\n") and len(found) < ANSWER_BYTES_MAX:
        piece = caller.recv(65536)
        if not piece:
            return b""
        found += piece
    return bytes(found)
