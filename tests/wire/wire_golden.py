"""The golden data of ``tests/data/wire_golden.json`` as our own objects (``derive_wire_golden.py`` makes the file)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from crucible_emu import errors
from crucible_emu.geometry import RegionDefinition
from crucible_emu.integrity import EMPTY, ENCRYPTED, PLAIN, BlockContexts
from crucible_emu.wire import messages as m

FILE = Path(__file__).resolve().parent.parent / "data" / "wire_golden.json"
KINDS = {"empty": EMPTY, "sealed": ENCRYPTED, "plain": PLAIN}
ERROR_CLASSES = {cls.__name__: cls for cls in errors.ERRORS}
DETAIL_CLASSES = {cls.__name__: cls for cls in errors.NEGOTIATION_DETAILS}


@dataclass(frozen=True)
class Example:
    """One row of appendix A or B: a value and its bytes."""

    name: str
    value: Any
    raw: bytes


def load() -> dict[str, Any]:
    return json.loads(FILE.read_text())


def messages() -> list[Example]:
    """Appendix A: messages and their frames."""
    found = []
    for entry in load()["messages"]:
        cls = getattr(m, entry["class"])
        members = {name: member(cls, name, value) for name, value in entry["fields"].items()}
        found.append(Example(entry["example"], cls(**members), bytes.fromhex(entry["frame"])))
    return found


def errors_() -> list[Example]:
    """Appendix B: errors and their bytes."""
    return [
        Example(entry["example"], error(entry["error"]), bytes.fromhex(entry["bytes"])) for entry in load()["errors"]
    ]


def member(cls: type[m.Message], name: str, value: Any) -> Any:
    match name, value:
        case _, {"error": named}:
            return error(named)
        case _, {"closed": [generation, flush, dirty]}:
            return (generation, flush, dirty)
        case (("contexts" | "blocks"), list()):
            return contexts(value)
        case (("repair_addr" | "source_repair_address"), [host, port]):
            return m.SocketAddress(host, port)
        case (("gen_numbers" | "flush_numbers"), _):
            return np.array(value, np.uint64)
        case "dirty_bits", _:
            return np.array(value, np.bool_)
        case "region_def", _:
            return RegionDefinition.from_json(value)
        case "data", _:
            raw = bytes.fromhex(value)
            return raw if cls is m.Unknown else memoryview(raw)
        case (("upstairs_id" | "session_id" | "new_upstairs_id" | "new_session_id" | "expected_id"), _):
            return UUID(value)
        case _, list():
            return tuple(value)
        case _:
            return value


def error(named: list[Any]) -> errors.CrucibleError:
    name, *payload = named
    if name == "NegotiationError":
        detail, *parts = payload[0]
        cls = DETAIL_CLASSES[detail]
        return errors.NegotiationError(
            cls(*(UUID(part) if kind is UUID else part for (_, kind), part in zip(cls.FIELDS, parts)))
        )
    return ERROR_CLASSES[name](*payload)


def contexts(entries: list[dict[str, Any]]) -> BlockContexts:
    def column(name: str, width: int) -> np.ndarray[Any, Any]:
        rows = [bytes.fromhex(entry.get(name, "00" * width)) for entry in entries]
        return np.array([list(row) for row in rows], np.uint8).reshape(len(entries), width)

    return BlockContexts(
        np.array([KINDS[entry["kind"]] for entry in entries], np.uint8),
        np.array([entry.get("hash", 0) for entry in entries], np.uint64),
        column("nonce", 12),
        column("tag", 16),
    )
