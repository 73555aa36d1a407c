"""Hashes and contexts, against the published values of the wire and disk specifications."""

from __future__ import annotations

import numpy as np
import pytest
from blake3 import blake3

from crucible_emu import errors
from crucible_emu.encryption import Cipher
from crucible_emu.integrity import (
    EMPTY,
    ENCRYPTED,
    PLAIN,
    BlockContexts,
    first_bad_block,
    hash_blocks,
    hash_sealed_blocks,
    open_blocks,
    open_scattered,
    stored_hashes,
    verify_writes,
    volume_digest,
)

KEY = bytes(range(32))


def rows(*values: int, size: int = 512) -> np.ndarray:
    return np.repeat(np.array(values, np.uint8)[:, None], size, axis=1)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (rows(1), 8717892996238908351),
        (rows(2), 2192425179333611943),
        (rows(9), 6305847132163957127),
        (rows(0), 10069907380382185596),
        (rows(0, size=4096), 12431794723299572699),
        (rows(0x5A), 0x7317FCE35FB3284A),
    ],
)
def test_hash_of_a_plain_block(block: np.ndarray, expected: int) -> None:
    assert hash_blocks(block).tolist() == [expected]


@pytest.mark.parametrize(("value", "expected"), [(1, 9163319254371683066), (9, 14137680576404864188)])
def test_hash_of_an_encrypted_block(value: int, expected: int) -> None:
    nonce = np.arange(1, 13, dtype=np.uint8)[None, :]
    tag = np.arange(4, 20, dtype=np.uint8)[None, :]
    assert hash_sealed_blocks(nonce, tag, rows(value)).tolist() == [expected]


@pytest.mark.parametrize("bit", [0, 511 * 8, 512 * 8 - 1])
def test_one_flipped_bit_is_found(bit: int) -> None:
    cipher = Cipher(KEY)
    for encrypted in (False, True):
        data = rows(3, 4, 5)
        if encrypted:
            data, contexts = cipher.encrypt_blocks(data)
        else:
            contexts = BlockContexts.plain(hash_blocks(data))
        data[1].view(np.uint8)[bit // 8] ^= 1 << (bit % 8)
        with pytest.raises(errors.HashMismatch):
            verify_writes(contexts, data)
        assert first_bad_block(data, contexts) == 1
        expected = errors.DecryptionError() if encrypted else errors.HashMismatch()
        assert open_blocks(data, contexts, cipher if encrypted else None) == expected


def mixed() -> tuple[np.ndarray, BlockContexts]:
    """A plain block, an unwritten one, a plain one."""
    data = rows(7, 0, 8)
    hashes = hash_blocks(data)
    hashes[1] = 0
    return data, BlockContexts(np.array([PLAIN, EMPTY, PLAIN], np.uint8), hashes, on_disk_hash=hashes)


def test_unwritten_blocks_are_zero_or_wrong() -> None:
    data, contexts = mixed()
    assert open_blocks(data, contexts, None) is None
    data[1, 5] = 1
    assert open_blocks(data, contexts, None) == errors.MissingBlockContext()
    assert first_bad_block(data, contexts) == 1


def test_the_wrong_kind_of_context_is_refused() -> None:
    data, contexts = mixed()
    assert open_blocks(data, contexts, Cipher(KEY)) == errors.MissingBlockContext()
    sealed, seals = Cipher(KEY).encrypt_blocks(rows(1))
    assert open_blocks(sealed, seals, None) == errors.MissingBlockContext()


def test_scattered_blocks_are_judged_one_by_one() -> None:
    data, contexts = mixed()
    buffers = [memoryview(row) for row in data]
    assert open_scattered(buffers, contexts, None) == []
    data[2, 0] ^= 1
    assert open_scattered(buffers, contexts, None) == [(2, errors.HashMismatch())]
    plain = rows(1, 2, 3, 4)
    sums = BlockContexts.plain(hash_blocks(plain))
    plain[1, 1] = plain[3, 3] = 99
    found = open_scattered([memoryview(row) for row in plain], sums, None)
    assert found == [(1, errors.HashMismatch()), (3, errors.HashMismatch())]


def test_stored_hashes_cover_the_stored_bytes_alone() -> None:
    stored, contexts = Cipher(KEY).encrypt_blocks(rows(1, 2))
    contexts.on_disk_hash = None
    assert stored_hashes(contexts, stored).tolist() == hash_blocks(stored).tolist()


def test_contexts_of_parts_and_of_the_whole_agree() -> None:
    sealed = Cipher(KEY).encrypt_blocks(rows(1, 2))[1]
    plain = BlockContexts.plain(hash_blocks(rows(5)))
    whole = BlockContexts.concatenate([sealed, BlockContexts.empty(1), plain])
    assert whole.kind.tolist() == [ENCRYPTED, ENCRYPTED, EMPTY, PLAIN]
    assert whole[:2].same_reads(sealed)
    assert whole[np.array([3])].same_reads(plain)
    assert not whole[:2].same_reads(Cipher(KEY).encrypt_blocks(rows(1, 2))[1])


def test_the_volume_digest_is_blake3_of_the_bytes() -> None:
    assert volume_digest([b"ab", memoryview(b"c")]) == blake3(b"abc").hexdigest()


def test_every_error_has_its_number_and_a_sentence() -> None:
    assert [error.TAG for error in errors.ERRORS] == list(range(42))
    assert [detail.TAG for detail in errors.NEGOTIATION_DETAILS] == list(range(8))
    assert all(error.SENTENCE and not error.SENTENCE.endswith(".") for error in errors.ERRORS)
    assert str(errors.IoError("disk full")) == "an input or output operation failed: disk full"
    assert errors.MissingContextSlot(3, 2) == errors.MissingContextSlot(3, 2) != errors.MissingContextSlot(3, 1)
