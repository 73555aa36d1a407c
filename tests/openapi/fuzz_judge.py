"""One run of the fuzz: requests out, answers judged, a report.

What it guarantees: nothing stops at the first defect; each is told once for each operation and sentence, with a request
that shows it. A status of 500 or above is a defect unless the service's description names it for that operation, an
answer that does not come in :data:`ANSWER_S_MAX` is one, and so is a connection that breaks without an answer.
"""

from __future__ import annotations

import http.client
import logging
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from random import Random
from typing import Any
from urllib.parse import urlsplit

import trio
from fuzz_requests import Known, Making, Request
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from openapi_document import Operation

ANSWER_S_MAX = 20.0
SLOW_S_MAX = 0.3
SHOWN_BYTES = 160
TURN_EXAMPLES = 20


@dataclass
class World:
    """A service that runs, with something behind it.

    ``documented``: operation ids with statuses of 500 and above that are meant. ``slow``: operations that may take
    as long as they like with some requests. ``learn`` hears of every answer below 300.
    """

    url: str
    making: Making
    known: Known
    documented: frozenset[tuple[str, int]] = frozenset()
    slow: frozenset[str] = frozenset()
    learn: Callable[[Operation, bytes], None] = lambda _operation, _body: None
    told: frozenset[str] = frozenset()
    """What the service may log as an error, since it is about what was asked for."""
    behind: Mapping[str, Any] = field(default_factory=dict)
    """What is behind the service, for whoever knows it."""
    last: tuple[str, ...] = ()
    """Operations without parameters that are asked for at the very end, since they end the service."""


Worlds = Callable[[Path], AbstractAsyncContextManager[World]]


@contextmanager
def running(world: Worlds, folder: Path) -> Iterator[World]:
    """The world in a thread of its own, with a loop of its own."""
    came: SimpleQueue[Any] = SimpleQueue()

    async def run() -> None:
        async with world(folder) as made:
            leaving = trio.Event()
            came.put((made, leaving, trio.lowlevel.current_trio_token()))
            await leaving.wait()

    failure: list[BaseException] = []

    def main() -> None:
        try:
            trio.run(run)
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            failure.append(error)
            came.put(None)

    thread = threading.Thread(target=main, name="world")
    thread.start()
    found = came.get()
    try:
        if found is not None:
            yield found[0]
    finally:
        if found is not None and thread.is_alive():
            try:
                found[2].run_sync_soon(found[1].set)
            except trio.RunFinishedError:
                pass  # the loop has failed, which is raised below
        thread.join()
        if failure:
            raise failure[0]


class Sender:
    """Sends requests one after the other over one connection, which is made anew where the service closed it."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._connection = http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=ANSWER_S_MAX)

    def send(self, request: Request, target: str, patience_s: float) -> tuple[int, dict[str, str], bytes]:
        """The answer. Raises :class:`OSError` or :class:`http.client.HTTPException`."""
        body = request.body or b""
        for fresh in (False, True):
            try:
                self._connect(patience_s)
                self._connection.putrequest(request.method or request.operation.method, target)
                for name, value in request.headers.items():
                    self._connection.putheader(name, value)
                if request.body is not None:
                    self._connection.putheader("content-length", str(len(body)))
                self._connection.endheaders()
                try:
                    self._connection.sock.sendall(body)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # refused before it was read to its end: there is an answer
                answer = self._connection.getresponse()
                headers = {name.lower(): value for name, value in answer.getheaders()}
                return answer.status, headers, answer.read()
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                # A connection that was kept may be closed by the other side at any time; a new one may not.
                self._connection.close()
                if fresh:
                    raise
            except (OSError, http.client.HTTPException):
                self._connection.close()
                raise
        raise AssertionError("the second round returns or raises")

    def _connect(self, patience_s: float) -> None:
        if self._connection.sock is None:
            self._connection.connect()
        self._connection.sock.settimeout(patience_s)

    def close(self) -> None:
        self._connection.close()


@dataclass
class Report:
    """What came of it."""

    service: str
    seed: int = 0
    examples: int = 0
    statuses: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    families: Counter[str] = field(default_factory=Counter)
    defects: dict[tuple[str, str], str] = field(default_factory=dict)
    """By operation and sentence: a request that shows it."""
    errors_500: int = 0

    def add(self, operation_id: str, sentence: str, request: str) -> None:
        self.defects.setdefault((operation_id, sentence), request)

    def lines(self) -> Iterator[str]:
        """The report, for a person."""
        families = ", ".join(f"{count} {family}" for family, count in sorted(self.families.items()))
        yield f"{self.service}: {self.examples} examples ({families}), seed {self.seed}"
        for operation_id, counts in sorted(self.statuses.items()):
            told = "  ".join(f"{status}: {count}" for status, count in sorted(counts.items()))
            yield f"  {operation_id:42} {told}"
        for (operation_id, sentence), request in self.defects.items():
            yield f"  DEFECT {operation_id}: {sentence}\n         {request}"
        verdict = "no defect" if not self.defects else f"{len(self.defects)} defects"
        yield f"  {verdict}; {self.errors_500} answers 500 that are not meant"


class Complaints(logging.Handler):
    """Counts what the service logs as an error: a handler that failed says so there, whatever it answered."""

    def __init__(self, meant: frozenset[str]) -> None:
        super().__init__(logging.ERROR)
        self._meant = meant
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() in self._meant and record.exc_info is None:
            return
        error = record.exc_info[1] if record.exc_info else None
        self.heard.append(f"{record.getMessage()}{f': {error!r}'[:300] if error else ''}")


class Run:
    """A run against one world."""

    def __init__(self, service: str, world: World) -> None:
        self.report = Report(service)
        self._world = world
        self._sender = Sender(world.url)
        self._complaints = Complaints(world.told)

    def fuzz(self, examples: int, number: int) -> Report:
        """Send ``examples`` requests, drawn from the seed ``number``."""
        self.report.seed = number
        logging.getLogger().addHandler(self._complaints)
        try:
            chance, strategies = Random(number), self._world.making.strategies()
            # In turns, a few of each: Hypothesis alone would ask for some of them nearly always.
            turn = max(2, min(TURN_EXAMPLES, examples // (2 * len(strategies))))
            while (left := examples - self.report.examples) > 0:
                self._some(chance.choice(strategies), min(turn, left), chance.randrange(2**32))
            for operation_id in self._world.last:
                operation = self._world.making.document.operations[operation_id]
                self.one(Request(operation, (), self._world.making.headers(operation)))
        finally:
            logging.getLogger().removeHandler(self._complaints)
            self._sender.close()
        return self.report

    def _some(self, requests: st.SearchStrategy[Request], examples: int, number: int) -> None:
        @seed(number)
        @settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(requests)
        def each(request: Request) -> None:
            self.one(request)

        each()

    def one(self, request: Request) -> None:
        """Send one request and judge what comes."""
        world, operation = self._world, request.operation
        method, target = request.method or operation.method, request.target(world.known)
        shown = f"{method} {target[:SHOWN_BYTES]} {request.note} {(request.body or b'')[:SHOWN_BYTES]!r}"
        self.report.examples += 1
        self.report.families[request.family] += 1
        counts = self.report.statuses[operation.operation_id]
        slow = operation.operation_id in world.slow
        try:
            status, headers, body = self._sender.send(request, target, SLOW_S_MAX if slow else ANSWER_S_MAX)
        except TimeoutError:
            counts["no answer"] += 1
            if not slow:
                self.report.add(operation.operation_id, f"no answer in {ANSWER_S_MAX:.0f} s", shown)
            return
        except (OSError, http.client.HTTPException) as error:
            counts["broken"] += 1
            self.report.add(operation.operation_id, f"the connection broke: {error!r}", shown)
            return
        counts[str(status)] += 1
        for sentence in self._judged(request, method, target, status, headers, body):
            self.report.add(operation.operation_id, sentence, f"{shown} -> {status} {body[:SHOWN_BYTES]!r}")
        if status < 300 and request.family == "allowed":
            world.learn(operation, body)

    def _judged(
        self, request: Request, method: str, target: str, status: int, headers: dict[str, str], body: bytes
    ) -> Iterator[str]:
        for heard in self._complaints.heard:
            yield f"logged as an error: {heard}"
        self._complaints.heard.clear()
        if status >= 500 and (request.operation.operation_id, status) not in self._world.documented:
            self.report.errors_500 += 1
            yield f"status {status}"
        if request.expected and status not in request.expected:
            yield f"status {status} for {request.note or request.family}: it is to be {sorted(request.expected)}"
        document = self._world.making.document
        meant = None if request.operation.operation_id not in document.operations else document.find(method, target)
        if method == "HEAD":
            yield from () if headers.get("x-request-id") else ("the answer has no x-request-id",)
        elif 300 <= status < 400 and (meant is None or status not in meant.success):
            yield f"status {status}: these services send nobody elsewhere"
        else:
            yield from document.violations(meant, status, headers, body)
