"""Sends notices to the control plane, one after the other (upstairs-volume.md §15.4).

What it is for: the real Upstairs finds some Nexus through DNS for each message; here the receiver's base URL is given.

What it guarantees: :meth:`Notifier.put` never waits and never raises, so that nothing on the path of a block depends
on a receiver that is slow, broken or gone. A request has 15 s; what fails is tried again after a pause (the beginning
and end of a repair) or dropped. One line in the log when a receiver stops answering, and one when it answers again.
"""

from __future__ import annotations

import httpx2
import trio

from crucible_emu.control.notices import Notice, NoticeQueue
from crucible_emu.errors import UsageError
from crucible_emu.logs import get_logger

REQUEST_S_MAX = 15.0
RETRY_PAUSE_S = 1.0
"""Five attempts at once would be over before a receiver that is being restarted is back."""
API_VERSION = "1.0.0"
"""Of the internal API; a receiver refuses requests that do not name it (apis-and-tools.md §0.3)."""
FAREWELL_S = 2.0
"""How long leaving waits for what is not sent yet."""

log = get_logger(__name__)


def check_url(url: str) -> str:
    """``url`` without a slash at its end. Raises :class:`UsageError`."""
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError):
        parsed = httpx2.URL("")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"{url!r} is no receiver of notices: give http://host:port")
    return url.rstrip("/")


class Notifier:
    """Sends to the receiver at ``url``. Start :meth:`run` in a nursery."""

    def __init__(self, url: str, *, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        self.url = check_url(url)
        self.receiver = httpx2.URL(url).netloc.decode("ascii")
        """Host and port: an URL may carry a password, and this is for the log."""
        self.queue = NoticeQueue()
        self.sent = 0
        self._transport = transport
        self._wake = trio.Event()
        self._idle = trio.Event()
        self._reachable = True

    def put(self, notice: Notice | None) -> None:
        """Send ``notice`` when its turn comes; ``None`` is none."""
        if notice is not None and self.queue.put(notice):
            if self._idle.is_set():
                self._idle = trio.Event()
            self._wake.set()

    async def run(self) -> None:
        """Send until cancelled."""
        headers = {"api-version": API_VERSION}
        async with httpx2.AsyncClient(
            headers=headers, timeout=REQUEST_S_MAX, trust_env=False, transport=self._transport
        ) as http:
            while True:
                notice = self.queue.take()
                if notice is None:
                    self._idle.set()
                    await self._wake.wait()
                    self._wake = trio.Event()
                    continue
                problem = await self._send(http, notice)
                self._note(problem)
                if problem is None:
                    self.sent += 1
                elif self.queue.failed(notice):
                    await trio.sleep(RETRY_PAUSE_S)

    async def _send(self, http: httpx2.AsyncClient, notice: Notice) -> str | None:
        """Why ``notice`` did not arrive, or ``None``."""
        try:
            with trio.fail_after(REQUEST_S_MAX):
                response = await http.post(f"{self.url}{notice.path}", json=notice.body)
        except trio.TooSlowError:
            return f"no answer within {REQUEST_S_MAX:.0f} s"
        except httpx2.HTTPError as error:
            return str(error) or type(error).__name__
        return None if response.is_success else f"answers {response.status_code}"

    def _note(self, problem: str | None) -> None:
        if self._reachable and problem is not None:
            log.warning("the receiver of notices does not take them", receiver=self.receiver, problem=problem)
        elif not self._reachable and problem is None:
            log.info("the receiver of notices takes them again", receiver=self.receiver, dropped=self.queue.dropped)
        self._reachable = problem is None

    async def drain(self, timeout_s: float = FAREWELL_S) -> None:
        """Wait until everything is sent or dropped, but not longer than ``timeout_s``."""
        with trio.move_on_after(timeout_s):
            while len(self.queue) or not self._idle.is_set():
                await self._idle.wait()
