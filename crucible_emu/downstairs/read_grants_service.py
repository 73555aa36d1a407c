"""The socket on which an Upstairs asks to read past its Downstairs (:mod:`read_grants`).

What it is for: one line in, one line with descriptors out. The connection stays open as long as the grant: its end
tells the reader that the grant has ended, also where this process was killed and could not say so otherwise.

What it guarantees: a peer that sends nothing, too much or anything else is told so, or not, and costs nothing but its
connection; there are few at a time, and none for long that were not let in. No descriptor stays open for a peer but its
socket.
"""

from __future__ import annotations

import array
import socket
from functools import partial

import trio

from crucible_emu.downstairs.listening import accept_forever
from crucible_emu.downstairs.read_grants import ASK_BYTES_MAX, NotGranted, ReadGrants, refusal
from crucible_emu.logs import get_logger
from crucible_emu.region import Region

PEERS_MAX = 16
ASK_S_MAX = 5.0
"""How long a peer may take to ask, and to take its answer."""

log = get_logger(__name__)


async def serve_read_grants(grants: ReadGrants, region: Region, listener: socket.socket) -> None:
    """Answer whoever asks on ``listener``, until cancelled."""
    limit = trio.CapacityLimiter(PEERS_MAX)
    async with trio.open_nursery() as nursery:
        await accept_forever(listener, partial(_serve, grants, region), nursery, limit)


async def _serve(grants: ReadGrants, region: Region, connected: socket.socket) -> None:
    with trio.socket.from_stdlib_socket(connected) as peer:
        try:
            with trio.fail_after(ASK_S_MAX):
                line = await _line_from(peer)
            await _answer(grants, region, peer, line)
        except trio.TooSlowError:
            log.info("a peer that asks for reads is silent")
        except OSError as error:
            log.info("a peer that asks for reads was lost", reason=str(error))


async def _line_from(peer: trio.socket.SocketType) -> bytes:
    """What is sent up to the end of a line, or as much as a line can have, or as there is."""
    line = b""
    while b"\n" not in line and len(line) < ASK_BYTES_MAX:
        more = await peer.recv(ASK_BYTES_MAX - len(line))
        if not more:
            break
        line += more
    return line


async def _answer(grants: ReadGrants, region: Region, peer: trio.socket.SocketType, line: bytes) -> None:
    scope = trio.CancelScope()
    ended = scope.cancel
    try:
        answer = grants.grant(line, ended)
    except NotGranted as refused:
        with trio.fail_after(ASK_S_MAX):
            await peer.send(refusal(str(refused)))
        return
    try:
        with scope:
            with grants.shared.descriptors(region.path) as descriptors, trio.fail_after(ASK_S_MAX):
                rights = array.array("i", descriptors)
                await peer.sendmsg([answer], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            await peer.recv(1)  # nothing more is asked for: whatever comes, it is over
    finally:
        grants.left(ended)
