"""How the demonstration is told: a live picture in a terminal, plain lines elsewhere.

A line of the story is said once and stays. Below it, where somebody looks at a terminal, are the guests and the
replacements as they are just now; elsewhere a change of a replacement is a line of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from crucible_emu.cli.sizes import format_size
from nexus.cli.demonstration.guests import Writer
from nexus.cli.demonstration.verdict import Claim, ok
from nexus.cli.replacement_picture import changes, picture
from nexus.cli.replacement_watch import Followed


class Telling:
    """Says the story on ``console`` while the block lasts."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._states: dict[str, str] = {}

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def __enter__(self) -> Telling:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, sentence: str) -> None:
        """A line of the story; words may hold anything, brackets as well."""
        self._print(escape(sentence))

    def _print(self, marked_up: str) -> None:
        self._console.print(f"[dim]{self.seconds:5.1f} s[/dim]  {marked_up}")

    def show(self, guests: Iterable[Writer], followed: Followed) -> None:
        """How it is now."""
        requests = list(followed.requests.values())
        if self._live is None:
            for line in changes(self._states, requests):
                self.say(line)
            return
        parts: list[RenderableType] = [_guests(guests)]
        if requests or followed.unasked:
            parts.append(picture(requests, followed.report, followed.unasked, datetime.now(UTC)))
        self._live.update(Group(*parts), refresh=True)

    def conclude(self, claims: Iterable[Claim]) -> None:
        """What was claimed, and whether it holds."""
        told = list(claims)
        for claim in told:
            mark = "[green]proved[/green]    " if claim.holds else "[red]not proved[/red]"
            self._print(f"{mark}  {escape(claim.sentence)}")
        if ok(told):
            self._print("[bold green]A sled died, half of it was deleted, and not a byte was lost.[/]")
        else:
            self._print("[bold red]It is not proved.[/]")


def _guests(guests: Iterable[Writer]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("guest", "writes", "written", "read back in between", "flushes", "errors"):
        table.add_column(title, justify="left" if title == "guest" else "right")
    for guest in guests:
        errors = len(guest.failures) + guest.differences
        table.add_row(
            guest.name,
            str(guest.writes),
            format_size(guest.bytes_written),
            str(guest.reads),
            str(guest.flushes),
            str(errors),
            style="red" if errors else "",
        )
    return table
