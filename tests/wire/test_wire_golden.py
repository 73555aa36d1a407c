"""The golden tables of the specification's appendices A, B and C, through our own API."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import derive_wire_golden
import numpy as np
import pytest
import wire_golden
from wire_golden import Example

from crucible_emu import encryption, errors, integrity, wire
from crucible_emu.integrity import PLAIN
from crucible_emu.region import layout
from crucible_emu.wire import codec
from crucible_emu.wire import messages as m
from crucible_emu.wire.frames import encode_by_table

SCRIPT = Path(__file__).resolve().parents[3] / "shared" / "spec" / "wire_examples.py"
MESSAGES = wire_golden.messages()
ERRORS = wire_golden.errors_()
VALUES = wire_golden.load()["values"]


def name(example: Example) -> str:
    return example.name


@pytest.mark.parametrize("example", MESSAGES, ids=name)
def test_message_is_exactly_these_bytes(example: Example) -> None:
    assert b"".join(wire.encode(example.value)).hex() == example.raw.hex()
    assert b"".join(encode_by_table(example.value)).hex() == example.raw.hex()


@pytest.mark.parametrize("example", MESSAGES, ids=name)
def test_bytes_are_exactly_this_message(example: Example) -> None:
    decoded = wire.decode(memoryview(example.raw))
    assert type(decoded) is type(example.value)
    assert decoded == example.value
    assert codec.MESSAGE.decode(memoryview(example.raw), 4)[0] == example.value


@pytest.mark.parametrize("example", ERRORS, ids=name)
def test_error_is_exactly_these_bytes(example: Example) -> None:
    assert codec.encode_error(example.value).hex() == example.raw.hex()
    assert codec.decode_error(example.raw) == example.value


def test_every_message_and_every_error_has_an_example() -> None:
    assert {type(example.value) for example in MESSAGES} == set(m.MESSAGES)
    assert len(m.MESSAGES) == 42
    assert {type(example.value) for example in ERRORS} == set(errors.ERRORS)
    assert len(errors.ERRORS) == 42
    details = [example.value.detail for example in ERRORS if isinstance(example.value, errors.NegotiationError)]
    assert {type(detail) for detail in details} == set(errors.NEGOTIATION_DETAILS)
    assert len(errors.NEGOTIATION_DETAILS) == 8


def test_tags_are_places_in_the_tables() -> None:
    assert [cls.TAG for cls in m.MESSAGES] == list(range(42))
    assert [cls.TAG for cls in errors.ERRORS] == list(range(42))
    assert [cls.TAG for cls in errors.NEGOTIATION_DETAILS] == list(range(8))


def test_catalogue_names_the_fields_as_the_classes_do() -> None:
    for cls, record in zip(m.MESSAGES, codec.MESSAGE.records, strict=True):
        assert record.names == tuple(field.name for field in fields(cls)), cls  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "repeat", "digest"), VALUES["xxh64"])
def test_hash_of_plain_block(text: str, repeat: int, digest: int) -> None:
    rows = np.frombuffer(bytes.fromhex(text) * repeat, np.uint8).reshape(1, -1)
    assert integrity.hash_blocks(rows).tolist() == [digest]


def test_encryption_example_opens_and_hashes() -> None:
    sealed = VALUES["sealed_block"]
    nonce, tag = (
        np.frombuffer(raw, np.uint8).reshape(1, -1) for raw in (bytes(range(12)), bytes.fromhex(sealed["tag"]))
    )
    rows = np.frombuffer(bytearray.fromhex(sealed["ciphertext"]), np.uint8).reshape(1, -1)
    assert integrity.hash_sealed_blocks(nonce, tag, rows).tolist() == [sealed["hash"]]
    assert integrity.hash_blocks(rows).tolist() == [VALUES["sealed_block_on_disk_hash"]]
    contexts = integrity.BlockContexts(np.array([integrity.ENCRYPTED], np.uint8), np.zeros(1, np.uint64), nonce, tag)
    assert encryption.Cipher(bytes(range(32))).decrypt_blocks(rows, contexts) is None
    assert rows.tobytes() == b"\x5a" * 512


@pytest.mark.parametrize(
    ("slot", "example", "on_disk_hash"),
    [("slot_plain", "Write/plain", 0x1122334455667788), ("slot_sealed", "Write/encrypted", 0x0102030405060708)],
)
def test_context_slot(slot: str, example: str, on_disk_hash: int) -> None:
    (contexts,) = (found.value.contexts for found in MESSAGES if found.name == example)
    packed = layout.pack_slots(contexts, np.array([on_disk_hash], np.uint64), 7)
    assert packed.tobytes().hex() == VALUES[slot]


def test_extent_metadata() -> None:
    assert layout.ExtentMetadata(False, 0, 0).pack().hex() == VALUES["metadata_fresh"]
    assert layout.ExtentMetadata(True, 5, 7).pack().hex() == VALUES["metadata_dirty_5_7"]


@pytest.mark.parametrize(("block_size", "blocks", "offsets"), VALUES["layouts"])
def test_extent_layout(block_size: int, blocks: int, offsets: dict[str, int]) -> None:
    found = layout.ExtentLayout(block_size, blocks)
    assert offsets == {
        "data": 0,
        "slots_a": found.slots_offset(0),
        "slots_b": found.slots_offset(1),
        "active": found.bitmap_offset,
        "meta": found.metadata_offset,
        "size": found.file_bytes,
    }


@pytest.mark.parametrize(("block_size", "blocks"), VALUES["max_io_blocks"])
def test_max_io_blocks(block_size: int, blocks: int) -> None:
    assert wire.max_io_blocks(block_size) == blocks


@pytest.mark.parametrize("block_size", [512, 4096, 8192, 32768])
def test_max_io_blocks_is_the_limit(block_size: int) -> None:
    def frame_bytes(blocks: int) -> int:
        return 96 + 8 + blocks * (37 + block_size)  # one dependency, encrypted contexts (§1.3)

    most = wire.max_io_blocks(block_size)
    assert frame_bytes(most) <= wire.FRAME_BYTES_MAX < frame_bytes(most + 1)


def test_plain_contexts_decode_with_the_hash_that_was_claimed_for_the_disk_too() -> None:
    (raw,) = (example.raw for example in MESSAGES if example.name == "Write/plain")
    decoded = wire.decode(memoryview(raw))
    assert isinstance(decoded, m.Write)
    assert decoded.contexts.kind.tolist() == [PLAIN]
    assert decoded.contexts.on_disk_hash is decoded.contexts.hash


@pytest.mark.skipif(not SCRIPT.exists(), reason="the specification's wire_examples.py is not beside this checkout")
def test_golden_file_is_what_the_specification_says() -> None:
    derived = derive_wire_golden.derive(derive_wire_golden.load_script(SCRIPT))
    assert json.loads(json.dumps(derived)) == wire_golden.load()


@pytest.mark.skipif(not SCRIPT.exists(), reason="the specification's wire_examples.py is not beside this checkout")
def test_specification_decodes_what_we_encode() -> None:
    script = derive_wire_golden.load_script(SCRIPT)
    for example in MESSAGES:
        frame = b"".join(wire.encode(example.value))
        (decoded, _), used = script.decode_frame(frame)
        assert (decoded, used) == (type(example.value).__name__, len(frame))
