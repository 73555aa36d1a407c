"""Asking a Downstairs on the same machine for more than its wire has.

What it is for: beside the unix socket of a Downstairs there may be a second one, at which an Upstairs that came by the
first asks with one line of JSON, and is answered with another (:mod:`~crucible_emu.downstairs.read_grants`). An
:class:`Asker` does that once there is a reason to, stays connected for as long as it is granted, and asks again when
that has ended. What is asked for, and what for, says whoever derives from it.

What it guarantees: a peer that refuses, does not answer or is not there costs nothing but what it would have granted,
and is asked again after a while. One that breaks the protocol is not asked again.
"""

from __future__ import annotations

import json
import socket
from abc import ABC, abstractmethod
from typing import Any, ClassVar
from uuid import UUID

import trio

from crucible_emu.descriptors import close_all, receive_line, send_line
from crucible_emu.errors import RemoteError
from crucible_emu.logs import get_logger
from crucible_emu.wire.constants import READS_PATH_SUFFIX

ANSWER_BYTES_MAX = 4096
"""A grant has some 400 bytes."""
ANSWER_S_MAX = 5.0
ASK_AGAIN_S = 1.0

log = get_logger(__name__)


class Asker(ABC):
    """Asks beside one connection to a Downstairs at the unix socket ``path``. :meth:`run` must run."""

    WHAT: ClassVar[str]
    """What is asked for, for sentences."""

    def __init__(self, path: str, upstairs_id: UUID, session_id: UUID) -> None:
        self._path = path + READS_PATH_SUFFIX
        self._question: dict[str, object] = {"upstairs_id": str(upstairs_id), "session_id": str(session_id)}
        self._wanted = trio.Event()
        self._said = ""

    def want(self) -> None:
        """There is a reason to ask."""
        self._wanted.set()

    async def run(self) -> None:
        """Ask, once there is a reason to, and again when a grant has ended; until cancelled, or nobody answers."""
        while True:
            await self._wanted.wait()
            try:
                if not await self._ask_once():
                    return
            except RemoteError as error:
                log.warning(f"no {self.WHAT}: it broke the protocol", path=self._path, error=str(error))
                return
            except (OSError, trio.TooSlowError) as error:
                self._say(str(error) or "it does not answer")
            await trio.sleep(ASK_AGAIN_S)
            self._wanted = trio.Event()

    def _say(self, reason: str) -> None:
        """Why there is no grant, but not the same again and again."""
        if reason != self._said:
            self._said = reason
            log.info(f"no {self.WHAT}", path=self._path, reason=reason)

    async def _ask_once(self) -> bool:
        """Ask, and stay until the grant ends. Whether it is worth asking again. Raises :class:`RemoteError`, OSError,
        :class:`trio.TooSlowError`."""
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            with trio.fail_after(ANSWER_S_MAX):
                try:
                    await peer.connect(self._path)
                except (FileNotFoundError, ConnectionRefusedError):
                    return False  # another program, or one that does not share
                await self._ask(peer)
                answer, descriptors = await receive_line(peer, ANSWER_BYTES_MAX)
            try:
                members = _granted_in(answer)
            except _Refused as refused:
                close_all(descriptors)
                self._say(str(refused))
                return True
            except (RemoteError, OSError):
                close_all(descriptors)
                raise
            self._said = ""
            await self._granted(peer, members, descriptors)
        return True

    async def _ask(self, peer: trio.socket.SocketType) -> None:
        """Send the question. Raises OSError."""
        await send_line(peer, self._question)

    @abstractmethod
    async def _granted(self, peer: trio.socket.SocketType, members: dict[str, Any], descriptors: list[int]) -> None:
        """It was granted as ``members`` say: use it until ``peer`` says that it has ended. Takes over the descriptors.
        Raises :class:`RemoteError`, OSError."""


class _Refused(Exception):
    """The Downstairs says why not."""


def _granted_in(answer: bytes) -> dict[str, Any]:
    """What an answer grants. Raises :class:`RemoteError`, :class:`_Refused`, OSError."""
    if b"\n" not in answer and len(answer) < ANSWER_BYTES_MAX:
        raise ConnectionResetError("it left without a word")  # turned away, or the grant has ended already
    try:
        members = json.loads(answer)
    except (ValueError, RecursionError):
        raise RemoteError("an answer that is not JSON") from None
    if isinstance(members, dict) and isinstance(members.get("refused"), str):
        raise _Refused(members["refused"])
    granted = members.get("granted") if isinstance(members, dict) else None
    if not isinstance(granted, dict):
        raise RemoteError("an answer that neither grants nor refuses")
    return granted
