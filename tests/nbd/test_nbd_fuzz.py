"""A slice of the fuzzing run; the whole is the command in nbd_fuzz.py."""

import os

import pytest
from nbd_fuzz import fuzz


@pytest.mark.long
@pytest.mark.parametrize("seed", [1, 2])
async def test_mutated_bytes_hurt_nobody_but_their_own_connection(seed: int) -> None:
    """A slice; the full run is ``python tests/nbd/nbd_fuzz.py 100000`` (or ``NBD_FUZZ_CASES=100000`` here)."""
    await fuzz(int(os.environ.get("NBD_FUZZ_CASES", "400")), seed)
