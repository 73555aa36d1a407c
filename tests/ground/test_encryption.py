"""The cipher, by whichever library: against the published values, and each library against the other."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from crucible_emu import encryption, errors
from crucible_emu.aead import Aead
from crucible_emu.encryption import Cipher
from crucible_emu.integrity import (
    ENCRYPTED,
    BlockContexts,
    hash_blocks,
    open_blocks,
    open_scattered,
    verify_writes,
)
from crucible_emu.slab import Slab

KEY = bytes(range(32))


def rows(*values: int, size: int = 512) -> np.ndarray:
    return np.repeat(np.array(values, np.uint8)[:, None], size, axis=1)


def _cannot(key: bytes) -> Aead:
    raise ImportError("not on this machine")


@pytest.fixture(params=["boringssl", "tink", "cryptography"])
def cipher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Cipher:
    """By each library; those of machines that lack the better ones, too."""
    if request.param != "boringssl":
        monkeypatch.setattr(encryption, "BoringSsl", _cannot)
    if request.param == "cryptography":
        monkeypatch.setattr(encryption, "Tink", _cannot)
    made = Cipher(KEY)
    assert made.library == request.param
    return made


def test_it_is_aes_256_gcm_siv_with_a_detached_tag(cipher: Cipher) -> None:
    """The published block, as its nonce and key give it, is opened."""
    nonce = bytes(range(12))
    sealed = AESGCMSIV(KEY).encrypt(nonce, b"\x5a" * 512, None)
    stored, tag = sealed[:-16], sealed[-16:]
    assert tag.hex() == "befa34d9115b6b265d5065b471ea8111"
    assert stored[:16].hex() == "54795a45c0eb5dffd7578c0422cca23f"
    assert stored[496:].hex() == "2d64cf9ea72b1bad383ef8f8732e75da"
    block = np.frombuffer(stored, np.uint8).reshape(1, 512).copy()
    contexts = BlockContexts(
        np.array([ENCRYPTED], np.uint8),
        np.array([0xC3B95BC66C44BB37], np.uint64),
        np.frombuffer(nonce, np.uint8).reshape(1, 12),
        np.frombuffer(tag, np.uint8).reshape(1, 16),
    )
    verify_writes(contexts, block)
    assert hash_blocks(block).tolist() == [0x7DCA1B6BC26144EC]
    assert open_blocks(block, contexts, cipher) is None
    assert block.tobytes() == b"\x5a" * 512


@pytest.mark.parametrize("count", [1, 3, 32, 65])
def test_what_it_seals_others_open(cipher: Cipher, count: int) -> None:
    plain = np.random.default_rng(count).integers(0, 256, (count, 512), np.uint8)
    stored, contexts = cipher.seal([row.data for row in plain], Slab(count + 2, 512))
    verify_writes(contexts, stored)
    assert contexts.on_disk_hash is not None
    assert contexts.on_disk_hash.tolist() == hash_blocks(stored).tolist()
    assert contexts.nonce is not None
    assert contexts.tag is not None
    other = AESGCMSIV(KEY)
    for index in range(count):
        sealed = stored[index].tobytes() + contexts.tag[index].tobytes()
        assert other.decrypt(contexts.nonce[index].tobytes(), sealed, None) == plain[index].tobytes()
    again = np.ascontiguousarray(stored)
    assert cipher.decrypt_blocks(again, contexts) is None
    assert np.array_equal(again, plain)


def test_every_nonce_is_fresh(cipher: Cipher) -> None:
    plain = rows(*range(7))
    stored, contexts = cipher.encrypt_blocks(plain)
    again, others = cipher.encrypt_blocks(plain)
    assert contexts.nonce is not None
    assert others.nonce is not None
    assert len(np.unique(np.concatenate([contexts.nonce, others.nonce]), axis=0)) == 14
    assert not np.array_equal(stored, again)


@pytest.mark.parametrize("damaged", [(), (0,), (4,), (1, 2), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("count", [3, 5])
def test_each_sealed_block_is_judged_by_itself(cipher: Cipher, damaged: tuple[int, ...], count: int) -> None:
    """Among blocks that were never written, and beside one with the context of a plain block."""
    plain = rows(*range(1, count + 1))
    stored, contexts = cipher.encrypt_blocks(plain)
    stored = np.concatenate([stored, rows(0, 0, 7)])
    contexts = BlockContexts.concatenate([contexts, BlockContexts.empty(2), BlockContexts.plain(hash_blocks(rows(7)))])
    wrong = [index for index in damaged if index < count]
    for index in wrong:
        stored[index, 100] ^= 1
    stored[count + 1, 0] = 1
    for part in ((0, count + 3), (count - 1, count + 2), (count - 2, count)):
        mine, of_mine = stored[slice(*part)].copy(), contexts[slice(*part)]
        found = open_scattered([row.data for row in mine], of_mine, cipher)
        expected: list[tuple[int, errors.CrucibleError]] = [
            (index - part[0], errors.DecryptionError()) for index in wrong if part[0] <= index < part[1]
        ]
        expected += [
            (index - part[0], errors.MissingBlockContext())
            for index in (count + 1, count + 2)
            if part[0] <= index < part[1]
        ]
        assert found == expected
        right = [index for index in range(*part) if index < count and index not in wrong]
        assert all(np.array_equal(mine[index - part[0]], plain[index]) for index in right)


@pytest.mark.parametrize("text", ["", "AAAA", "not base64!", "A" * 43, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"])
def test_a_bad_key_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        Cipher.from_base64(text)
    assert not text or text not in str(caught.value)


def test_another_key_opens_nothing(cipher: Cipher) -> None:
    plain = rows(1, 2)
    stored, contexts = cipher.encrypt_blocks(plain)
    assert Cipher(KEY[::-1]).open([row.data for row in stored], contexts) == [0, 1]
    assert not (stored == plain).all(axis=1).any()
