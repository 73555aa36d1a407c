"""Derive ``tests/data/wire_golden.json`` from the companion script of the wire specification.

    python tests/wire/derive_wire_golden.py ../shared/spec/wire_examples.py

What it is for: the suite must run in a checkout that has no specification beside it, so the golden bytes lie in the
tree. Their form is ours: each example names a message class, its fields in plain JSON, and the bytes. A test compares
the file with the script wherever the script is at hand.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID

TARGET = Path(__file__).resolve().parent.parent / "data" / "wire_golden.json"
PLAIN_KIND, SEALED_KIND, EMPTY_KIND = "plain", "sealed", "empty"


def load_script(path: Path) -> ModuleType:
    """The companion script as a module, without leaving compiled files beside it."""
    spec = importlib.util.spec_from_file_location("wire_examples", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def derive(script: ModuleType) -> dict[str, Any]:
    """Everything the tests need of appendices A, B and C."""
    return {
        "messages": [
            {
                "example": label,
                "class": name,
                "fields": {key: plain(value) for key, value in flatten(fields).items()},
                "frame": script.encode_frame(name, **fields).hex(),
            }
            for label, name, fields in script.examples()
        ],
        "errors": [
            {"example": label, "error": error(value), "bytes": script.ERROR.enc(value).hex()}
            for label, value in script.error_examples()
        ],
        "values": values(script),
    }


def flatten(fields: dict[str, Any]) -> dict[str, Any]:
    """A bulk message's header and data side by side."""
    header = fields.get("header")
    return {**header, "data": fields["data"]} if header else fields


def plain(value: Any) -> Any:
    """One field in JSON: UUIDs as text, bytes in hex, contexts and results as objects that name their kind."""
    match value:
        case UUID():
            return str(value)
        case bytes():
            return value.hex()
        case {"snapshot_name": name}:
            return name
        case {"hash": digest, "encryption_context": None}:
            return {"kind": PLAIN_KIND, "hash": digest}
        case {"hash": digest, "encryption_context": seal}:
            return {"kind": SEALED_KIND, "hash": digest, **{key: part.hex() for key, part in seal.items()}}
        case dict():
            return {key: plain(part) for key, part in value.items()}
        case ("Ok", ()):
            return None
        case ("Ok", tuple(closed)):
            return {"closed": list(closed)}
        case ("Ok", list(blocks)):
            return [read_context(block) for block in blocks]
        case ("Err", failure):
            return {"error": error(failure)}
        case (str(host), int(port)):
            return [host, port]
        case (str(), _):
            return {"error": error(value)}
        case list():
            return [plain(part) for part in value]
        case _:
            return value


def read_context(block: tuple[str, Any]) -> dict[str, Any]:
    match block:
        case ("Empty", _):
            return {"kind": EMPTY_KIND}
        case ("Unencrypted", {"hash": digest}):
            return {"kind": PLAIN_KIND, "hash": digest}
        case ("Encrypted", {"ctx": seal}):
            return {"kind": SEALED_KIND, **{key: part.hex() for key, part in seal.items()}}
    raise ValueError(f"{block!r} is no context of a read response")


def error(value: tuple[str, Any]) -> list[Any]:
    """An error as its name and its payload; a negotiation detail is such a list again."""
    name, payload = value
    match payload:
        case ():
            return [name]
        case dict():
            return [name, *(plain(part) for part in payload.values())]
        case tuple():
            return [name, error(payload)]
        case _:
            return [name, payload]


def values(script: ModuleType) -> dict[str, Any]:
    sealed, why = script.crypto_example()
    if sealed is None:
        raise SystemExit(f"the encryption example needs a library with AES-GCM-SIV: {why}")
    ciphertext, tag, digest = sealed
    return {
        "xxh64": [[text.hex(), repeat, script.xxh64(text * repeat)] for text, repeat in HASHED],
        "sealed_block": {"ciphertext": ciphertext.hex(), "tag": tag.hex(), "hash": digest},
        "sealed_block_on_disk_hash": script.hash_plain(ciphertext),
        "slot_plain": script.context_slot(script.PLAIN_CTX, 0x1122334455667788, 7).hex(),
        "slot_sealed": script.context_slot(script.ENCR_CTX, 0x0102030405060708, 7).hex(),
        "metadata_fresh": script.extent_meta(0, 0, 0).hex(),
        "metadata_dirty_5_7": script.extent_meta(1, 5, 7).hex(),
        "layouts": [[size, blocks, script.extent_file_layout(size, blocks)] for size, blocks in LAYOUTS],
        "max_io_blocks": [[size, script.max_io_blocks(size)] for size in (512, 4096)],
    }


HASHED = ((b"\0", 512), (b"\0", 4096), (b"\x5a", 512))
LAYOUTS = ((512, 100), (4096, 64))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: derive_wire_golden.py PATH/TO/wire_examples.py")
    found = derive(load_script(Path(sys.argv[1])))
    TARGET.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{TARGET}: {len(found['messages'])} messages, {len(found['errors'])} errors")
