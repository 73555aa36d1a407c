"""BoringSSL called directly: what must hold before C is believed, and what C is told."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata, util
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from crucible_emu import boringssl
from crucible_emu.boringssl import BoringSsl
from crucible_emu.encryption import Cipher
from crucible_emu.integrity import NONCE_BYTES, SEAL_BYTES, TAG_BYTES
from crucible_emu.slab import Slab

KEY = bytes(range(32))
SIZE = 512


@pytest.fixture
def looked_up_anew() -> Iterator[None]:
    """Each process looks once; here each test, and the next one again."""
    boringssl._library.cache_clear()
    boringssl._trusted.cache_clear()
    yield
    boringssl._library.cache_clear()
    boringssl._trusted.cache_clear()


def blocks(count: int) -> bytes:
    return np.random.default_rng(count).bytes(count * SIZE)


def opened_by_another(slab: Slab) -> bytes:
    """By OpenSSL."""
    other, plain = AESGCMSIV(KEY), []
    for seal, stored in zip(slab.seals, slab.stored):
        nonce, tag = bytes(seal[:NONCE_BYTES]), bytes(seal[NONCE_BYTES:])
        plain.append(other.decrypt(nonce, bytes(stored) + tag, None))
    return b"".join(plain)


@pytest.mark.parametrize("pieces", [(5,), (1, 3, 1), (1, 1, 1, 1, 1)])
def test_blocks_are_sealed_from_where_they_lie_and_opened_in_place(pieces: tuple[int, ...]) -> None:
    data, slab = blocks(5), Slab(7, SIZE)
    payloads, at = [], 0
    for count in pieces:
        payloads.append(memoryview(data)[at : at + count * SIZE])
        at += count * SIZE
    slab.rows[:] = 0
    BoringSsl(KEY).seal(payloads, slab, 1, 6)
    assert not slab.rows[0].any() and not slab.rows[6].any()
    rows = slab.rows[1:6]
    assert opened_by_another(Slab(5, SIZE, rows.copy().reshape(-1))) == data
    stored = rows[:, SEAL_BYTES:-TAG_BYTES].copy()
    assert BoringSsl(KEY).open_rows(stored, rows[:, :NONCE_BYTES], rows[:, NONCE_BYTES:SEAL_BYTES]) == []
    assert stored.tobytes() == data


def test_single_blocks_are_sealed_one_behind_the_other() -> None:
    data, slab = blocks(4), Slab(4, SIZE)
    slab.rows[3] = 0
    BoringSsl(KEY).seal_singles([memoryview(data)[at : at + SIZE] for at in (0, SIZE, 2 * SIZE)], slab)
    assert not slab.rows[3].any()
    assert opened_by_another(Slab(3, SIZE, slab.rows[:3].reshape(-1))) == data[: 3 * SIZE]


def test_a_block_may_lie_where_its_ciphertext_comes() -> None:
    data, slab, cipher = blocks(3), Slab(3, SIZE), BoringSsl(KEY)
    slab.rows[:, SEAL_BYTES:-TAG_BYTES] = np.frombuffer(data, np.uint8).reshape(3, SIZE)
    cipher.seal(slab.stored, slab, 0, 3)
    assert opened_by_another(slab) == data


def test_what_does_not_open_is_zeros() -> None:
    slab = Slab(3, SIZE)
    BoringSsl(KEY).seal([memoryview(blocks(3))], slab, 0, 3)
    slab.rows[1, NONCE_BYTES] ^= 1
    stored = slab.rows[:, SEAL_BYTES:-TAG_BYTES]
    assert BoringSsl(KEY).open_rows(stored, slab.rows[:, :NONCE_BYTES], slab.rows[:, NONCE_BYTES:SEAL_BYTES]) == [1]
    assert stored.any(axis=1).tolist() == [True, False, True]


@pytest.mark.parametrize(("count", "first", "stop"), [(2, 0, 3), (4, 0, 3), (4, 0, 4), (3, -3, 0)])
def test_blocks_that_have_no_rows_never_reach_c(count: int, first: int, stop: int) -> None:
    with pytest.raises(ValueError, match="are not the place"):
        BoringSsl(KEY).seal([memoryview(blocks(count))], Slab(3, SIZE), first, stop)


def test_parts_of_blocks_never_reach_c() -> None:
    data = memoryview(blocks(2))
    with pytest.raises(ValueError, match="not whole blocks"):
        BoringSsl(KEY).seal([data[:100], data[100:]], Slab(2, SIZE), 0, 2)


def test_rows_that_are_not_in_one_piece_never_reach_c() -> None:
    scattered = np.zeros((2, 2 * SIZE), np.uint8)[:, ::2]
    with pytest.raises(ValueError, match="in one piece"):
        BoringSsl(KEY).open_rows(scattered, np.zeros((2, NONCE_BYTES), np.uint8), np.zeros((2, TAG_BYTES), np.uint8))


def test_seals_of_another_number_or_length_never_reach_c() -> None:
    stored = np.zeros((2, SIZE), np.uint8)
    with pytest.raises(ValueError, match="as many nonces"):
        BoringSsl(KEY).open_rows(stored, np.zeros((1, NONCE_BYTES), np.uint8), np.zeros((2, TAG_BYTES), np.uint8))


def test_memory_that_may_not_be_written_is_not() -> None:
    rows = np.frombuffer(bytes(SIZE), np.uint8).reshape(1, SIZE)
    with pytest.raises(ValueError, match="must be writable"):
        BoringSsl(KEY).open_rows(rows, np.zeros((1, NONCE_BYTES), np.uint8), np.zeros((1, TAG_BYTES), np.uint8))


# -- where it cannot be had -------------------------------------------------------------------------------------------


def test_a_version_that_nobody_has_looked_at_is_not_called(
    monkeypatch: pytest.MonkeyPatch, looked_up_anew: None
) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "1.17.0")
    with pytest.raises(ImportError, match=r"1\.17\.0 is not known"):
        BoringSsl(KEY)
    assert Cipher(KEY).library == "tink"


def test_without_tink_there_is_none(monkeypatch: pytest.MonkeyPatch, looked_up_anew: None) -> None:
    monkeypatch.setattr(util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match="not installed"):
        BoringSsl(KEY)


def test_a_library_that_keeps_its_functions_to_itself_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, looked_up_anew: None
) -> None:
    monkeypatch.setattr(boringssl, "_DOING", ("EVP_AEAD_CTX_seal_everything",))
    with pytest.raises(ImportError, match="does not hand out"):
        BoringSsl(KEY)
    assert Cipher(KEY).library == "tink"


def test_one_that_does_the_published_example_wrongly_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, looked_up_anew: None
) -> None:
    interface, functions = boringssl._library()

    def forgets_the_key(*arguments: object) -> int:
        return 1

    spoilt = SimpleNamespace(
        EVP_aead_aes_256_gcm_siv=functions.EVP_aead_aes_256_gcm_siv,
        EVP_AEAD_CTX_new=functions.EVP_AEAD_CTX_new,
        EVP_AEAD_CTX_free=functions.EVP_AEAD_CTX_free,
        EVP_AEAD_CTX_seal=forgets_the_key,
        EVP_AEAD_CTX_open_gather=functions.EVP_AEAD_CTX_open_gather,
    )
    monkeypatch.setattr(boringssl, "_library", lambda: (interface, spoilt))
    with pytest.raises(ImportError, match="published"):
        BoringSsl(KEY)
    monkeypatch.undo()
    boringssl._trusted.cache_clear()
    assert BoringSsl(KEY).library == "boringssl"
