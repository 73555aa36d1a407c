"""``nexus replacement watch``: look again and again, until nothing that is lost is without a successor.

What it guarantees: it ends when no request is open and every lost copy has had one; what was complete before it began
is not shown. It only looks. A moment without an answer is borne: a Nexus that dies while its rack is mended is no
reason to look away.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import trio
import typer
from rich.console import Console
from rich.live import Live

from crucible_emu.cli.program import FAILURE_EXIT
from crucible_emu.client.failures import ServiceUnreachable
from nexus.api.replacement_documents import LostCopy, Replacement, WaitingReport
from nexus.cli.replacement_picture import changes, picture
from nexus.cli.session import Session, converse
from nexus.cli.showing import print_json

LOOK_S = 0.5
UNREACHABLE_S_MAX = 60.0


class Followed:
    """What is watched: every request that was open once. ``open_left``: whether there is something to wait for."""

    def __init__(self) -> None:
        self.requests: dict[str, Replacement] = {}
        self.report = WaitingReport(requests=(), locks=(), blockers=())
        self.unasked: tuple[LostCopy, ...] = ()

    @property
    def open_left(self) -> bool:
        return bool(self.report.requests or self.unasked)

    async def look(self, nexus: Session) -> None:
        """How it is now."""
        # What is lost comes first: what got its request between the two looks is in the second.
        lost = (await nexus.emulator.replacement_to_do()).copies
        self.report = await nexus.emulator.replacement_waiting()
        self.unasked = tuple(each for each in lost if each.request_id is None)
        now_open = {str(each.request.id): each.request for each in self.report.requests}
        for request_id, request in self.requests.items():
            if request_id not in now_open and request.state != "complete":
                found = await nexus.emulator.replacement_view(request_id)
                now_open[request_id] = Replacement.model_validate(found.model_dump())
        self.requests |= now_open


def watch_all(rack: Path | None, timeout_s: float | None, *, as_json: bool) -> None:
    """Until all is replaced; leaves with exit code 1 where that was not so in time."""
    followed = Followed()

    async def work(nexus: Session) -> bool:
        with trio.move_on_after(timeout_s if timeout_s is not None else float("inf")):
            await _follow(nexus, followed, shown=not as_json)
            return True
        return False

    ended = converse(work, rack, operator=True)
    requests = sorted(followed.requests.values(), key=lambda each: (each.request_time, each.id))
    if as_json:
        items = [each.model_dump(mode="json") for each in requests]
        print_json({"complete": ended, "items": items, "unasked": len(followed.unasked)})
    elif ended:
        print(f"All is replaced: {len(requests)} requests were open." if requests else "Nothing is to be replaced.")
    else:
        print(f"Not all is replaced after {timeout_s:g} s: nexus replacement waiting says why.")
    sys.stdout.flush()
    if not ended:
        raise typer.Exit(FAILURE_EXIT)


async def _follow(nexus: Session, followed: Followed, *, shown: bool) -> None:
    console = Console(highlight=False)
    before: dict[str, str] = {}
    live = Live(console=console, transient=True, auto_refresh=False) if shown and console.is_terminal else None
    if live is not None:
        live.start()
    try:
        while True:
            await _look(nexus, followed)
            requests = list(followed.requests.values())
            if live is not None:
                live.update(picture(requests, followed.report, followed.unasked, datetime.now(UTC)), refresh=True)
            elif shown:
                for line in changes(before, requests):
                    print(line, flush=True)
            if not followed.open_left:
                return
            await trio.sleep(LOOK_S)
    finally:
        if live is not None:
            live.stop()


async def _look(nexus: Session, followed: Followed) -> None:
    """*Liveness*: not for ever without an answer."""
    deadline = trio.current_time() + UNREACHABLE_S_MAX
    while True:
        try:
            await followed.look(nexus)
            return
        except ServiceUnreachable:
            if trio.current_time() > deadline:
                raise
            await trio.sleep(LOOK_S)
