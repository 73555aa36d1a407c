"""Logs: one line of JSON per event, with names, and never a secret.

What it is for: every module takes its logger from :func:`get_logger` and logs an event with fields
(``log.info("region opened", extents=15)``). A *program* calls :func:`configure` once; a library that is only imported
configures nothing, and its records go wherever the importing program sends those of :mod:`logging`.

What it guarantees: fields bound with ``structlog.contextvars`` follow the Trio task. A field that is named like a
secret leaves the process as ``[redacted]``, at any depth of nested documents (a volume construction request carries
its key two levels down). That is safe because it looks at names only, before a record exists, so that no handler can
see what was taken out.

Where it costs: below the level in force a call is one comparison; nothing of it stands on the path of a block.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import Any, TextIO, cast

import structlog

from crucible_emu.errors import UsageError

LEVEL_VARIABLE = "CRUCIBLE_EMU_LOG"
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

REDACTED = "[redacted]"
SECRET_NAMES = frozenset({"key", "secret", "token", "password", "authorization"})
SECRET_ENDINGS = ("_key", "_pem", "_secret", "_token", "_password")

TOLD_TOO_MUCH = ("httpx2", "httpcore2")
"""Libraries that log every URL in full below WARNING; a URL may hold a secret."""

FIELDS = "crucible_fields"
"""The attribute of a :class:`logging.LogRecord` that holds an event's fields, a dict."""


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of the module ``name``: events with fields in, records of :mod:`logging` out."""
    logger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.contextvars.merge_contextvars,
            redact_secrets,
            to_record,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        context_class=dict,
        cache_logger_on_first_use=True,
    )
    return cast(structlog.stdlib.BoundLogger, logger)


def configure(stream: TextIO | None = None, level: str | None = None) -> None:
    """Send every record of the process to ``stream`` (standard error by default) as lines of JSON.

    ``level`` is a name out of :data:`LEVELS`; by default that in the environment variable ``CRUCIBLE_EMU_LOG``, else
    ``info``. Raises :class:`UsageError` for any other name. Calling it again replaces what it set up before.
    """
    name = level if level is not None else os.environ.get(LEVEL_VARIABLE) or "info"
    if name.lower() not in LEVELS:
        source = LEVEL_VARIABLE if level is None else "The log level"
        raise UsageError(f"{source} is '{name}'; it is one of {', '.join(LEVELS)}.")
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old.formatter, JsonLines)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(LEVELS[name.lower()])
    for talkative in TOLD_TOO_MUCH:
        logging.getLogger(talkative).setLevel(logging.WARNING)


def is_secret(name: object) -> bool:
    """Whether a field of this name is taken for a secret. In doubt it is: ``public_key`` too is left out."""
    return isinstance(name, str) and (name.lower() in SECRET_NAMES or name.lower().endswith(SECRET_ENDINGS))


def redact_secrets(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> dict[str, Any]:
    """A structlog processor: replace the value of each field that is named like a secret, at any depth."""
    return cast(dict[str, Any], without_secrets(event))


def without_secrets(value: object) -> object:
    """``value`` with its documents opened: mappings, sequences, data classes and models become plain containers,
    and what stands under a secret's name becomes :data:`REDACTED`. Anything else is returned as it is."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    elif hasattr(value, "model_dump"):  # a pydantic model; its repr would show the key
        value = value.model_dump()
    if isinstance(value, Mapping):
        return {
            name: REDACTED if is_secret(name) and item is not None else without_secrets(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [without_secrets(item) for item in value]
    return value


def to_record(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> tuple[tuple[str], dict[str, Any]]:
    """The last structlog processor: the event becomes the record's message, its fields one attribute of it."""
    message = str(event.pop("event", ""))
    standard = {name: event.pop(name) for name in ("exc_info", "stack_info") if name in event}
    return (message,), {"extra": {FIELDS: dict(event)}, **standard}


class JsonLines(logging.Formatter):
    """One record, one line: ``time`` (UTC, RFC 3339), ``level``, ``logger``, ``event``, the fields, ``exception``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        for name, value in getattr(record, FIELDS, {}).items():
            line[f"{name}_" if name in line else name] = value
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return json.dumps(line, default=str, ensure_ascii=False)
