"""The rows of a saga's log: one per event, appended only.

What it guarantees: a row says which node, what happened, and for a success the output, for a failure the reason; read
in order, the rows are all that is known of a saga, so whoever has them can go on with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from crucible_emu.logs import is_secret


class Kind(Enum):
    """What happened to a node."""

    STARTED = "started"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNDO_STARTED = "undo_started"
    UNDO_FINISHED = "undo_finished"
    UNDO_FAILED = "undo_failed"


@dataclass(frozen=True, slots=True)
class Event:
    """One row. ``data``: the output of a success, ``{"message", "kind"}`` of a failure, else ``None``."""

    label: str
    kind: Kind
    data: Any = None


WHOLE_REQUEST = "volume_construction_request"
"""A document that carries keys, under a name that does not say so."""


class SecretInLog(Exception):
    """An output holds what must not be written down: a defect of the action."""


def refuse_secrets(value: Any, where: str) -> None:
    """*Safety*: nothing named like a secret gets into the log, at any depth; JSON texts are looked into as well.

    Raises :class:`SecretInLog`, which names the place and not the value.
    """
    match value:
        case dict():
            for name, each in value.items():
                if each is not None and (is_secret(name) or str(name).lower() == WHOLE_REQUEST):
                    raise SecretInLog(f"{where}.{name} is a secret: a saga's log holds ids only")
                refuse_secrets(each, f"{where}.{name}")
        case list() | tuple():
            for index, each in enumerate(value):
                refuse_secrets(each, f"{where}[{index}]")
        case str() if '"key"' in value or "PRIVATE KEY" in value:
            raise SecretInLog(f"{where} is a text with a key in it: a saga's log holds ids only")
