"""A pytest plugin: an unexpected log record fails the test that caused it.

What it is for: a program that recovers well hides its faults; it logs a warning and goes on. So a record of WARNING
or above, and a record of any level that speaks of a traceback or an exception, fails the test in whose time it came,
unless the test declared it::

    def test_peer_that_lies(expect_log):
        with expect_log("connection closed: bad tag"):     # must come inside the block
            ...

    def test_worn_disk(expect_log):
        expect_log("checksum mismatch", at_least=2)        # must come before the test ends

What it guarantees: it watches from before the first fixture until after the last one is torn down. A declared record
that does not come fails the test as well, so a declaration cannot outlive its reason (``at_least=0`` allows both,
for a record that depends on timing). The pattern is searched, as a regular expression, in the event followed by its
fields as ``name=value``.

The project's loggers hand their events to :mod:`logging` (``crucible_emu.logs``); a bare ``structlog.get_logger()`` is
sent there too while tests run, so one handler sees all.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from types import TracebackType

import pytest
import structlog

from crucible_emu.logs import FIELDS, JsonLines, redact_secrets, to_record

SUSPICIOUS = re.compile(r"\btraceback\b|\bexception\b", re.IGNORECASE)
OURS = ("crucible_emu", "nexus", "bench")
"""Loggers that are heard from INFO on while tests run; the others as they are set up."""


def spoken(record: logging.LogRecord) -> str:
    """A record as one text: the event, its fields, its traceback."""
    fields = "".join(f" {name}={value}" for name, value in getattr(record, FIELDS, {}).items())
    trace = f"\n{logging.Formatter().formatException(record.exc_info)}" if record.exc_info else ""
    return f"{record.getMessage()}{fields}{trace}"


class Expectation:
    """One declared pattern; as a context manager it must be met inside its block."""

    def __init__(self, pattern: str, at_least: int) -> None:
        self.pattern = re.compile(pattern)
        self.at_least = at_least
        self.met = 0

    def takes(self, text: str) -> bool:
        found = self.pattern.search(text) is not None
        self.met += found
        return found

    def check(self) -> None:
        if self.met < self.at_least:
            pytest.fail(
                f"expected at least {self.at_least} log record(s) that match {self.pattern.pattern!r}, saw {self.met}",
                pytrace=False,
            )

    def __enter__(self) -> Expectation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.check()


class LogCheck(logging.Handler):
    """Collects what was logged and not declared. ``emit`` may be called from any thread."""

    def __init__(self) -> None:
        super().__init__(logging.NOTSET)
        self.expectations: list[Expectation] = []
        self.unexpected: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = spoken(record)
        # A list, not any(): every declaration that fits counts the record.
        declared = [expectation for expectation in self.expectations if expectation.takes(text)]
        if not declared and (record.levelno >= logging.WARNING or SUSPICIOUS.search(text)):
            self.unexpected.append(f"{record.levelname} {record.name}: {text}")

    def expect(self, pattern: str, *, at_least: int = 1) -> Expectation:
        expectation = Expectation(pattern, at_least)
        self.expectations.append(expectation)
        return expectation

    def verdict(self) -> str | None:
        """Why the test fails, or ``None``."""
        missing = [
            f"declared, but logged {e.met} of {e.at_least} times: {e.pattern.pattern!r}"
            for e in self.expectations
            if e.met < e.at_least
        ]
        lines = [f"logged, but not declared with expect_log: {text}" for text in self.unexpected] + missing
        return "\n".join(lines) or None


@pytest.fixture(autouse=True)
def log_check() -> Iterator[LogCheck]:
    """Watches one test."""
    check = LogCheck()
    root = logging.getLogger()
    # The root too: a command that a test runs in this process sets its level for good.
    levels = {name: logging.getLogger(name).level for name in (*OURS, None)}
    root.addHandler(check)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        yield check
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        root.removeHandler(check)
        # What a command in this process set up writes to a stream that goes with its test.
        for handler in [each for each in root.handlers if isinstance(each.formatter, JsonLines)]:
            root.removeHandler(handler)
    verdict = check.verdict()
    if verdict:
        pytest.fail(verdict, pytrace=False)


@pytest.fixture
def expect_log(log_check: LogCheck) -> Callable[..., Expectation]:
    """Declares a log record: ``expect_log(pattern, *, at_least=1)``, alone or as a context manager."""
    return log_check.expect


def pytest_configure() -> None:
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, redact_secrets, to_record],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
