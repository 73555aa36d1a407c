"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_emu.cli.sizes import SIZE_BYTES_MAX, format_size, parse_extent_size, parse_size
from crucible_emu.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("4k", 4096),
        ("4K", 4096),
        ("4KiB", 4096),
        ("4kib", 4096),
        ("4KB", 4000),
        ("1M", 1 << 20),
        ("1MiB", 1 << 20),
        ("1MB", 10**6),
        ("1 GiB", 1 << 30),
        (" 1GiB ", 1 << 30),
        ("1.5GiB", 3 << 29),
        ("0.5k", 512),
        ("2T", 2 << 40),
        ("1PiB", 1 << 50),
        ("7EiB", 7 << 60),
        ("0.1KB", 100),
    ],
)
def test_sizes(text, size_bytes):
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    ["", "x", "-1", "+1", "1x", "1KiBs", "1KK", "KiB", "1,5G", "1e9", "0x10", "1.", ".5K", "1_000", "١", "1 2", "1iB"],
)
def test_what_is_no_size(text):
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert str(caught.value).startswith(repr(text))
    assert "1GiB" in str(caught.value)


@pytest.mark.parametrize("text", ["0.5", "1.5B", "0.3KiB", "1.0001KB"])
def test_fractions_of_a_byte(text):
    with pytest.raises(UsageError, match="not a whole number of bytes"):
        parse_size(text)


def test_the_largest_size():
    assert parse_size(str(SIZE_BYTES_MAX)) == SIZE_BYTES_MAX
    with pytest.raises(UsageError, match="the most a disk can have"):
        parse_size("8EiB")


@given(st.integers(0, SIZE_BYTES_MAX))
def test_numbers_are_exact(size_bytes):
    assert parse_size(str(size_bytes)) == size_bytes


@given(st.integers(1, 2**20), st.sampled_from("KMGT"))
def test_units_are_exact(count, letter):
    power = "KMGT".index(letter) + 1
    assert parse_size(f"{count}{letter}iB") == count * 1024**power
    assert parse_size(f"{count}{letter}B") == count * 1000**power


@pytest.mark.parametrize(
    ("text", "blocks"), [("100", 100), ("1", 1), ("64MiB", 16384), ("4096B", 1), ("8k", 2), ("0", 0)]
)
def test_extent_size_is_blocks_or_bytes(text, blocks):
    assert parse_extent_size(text, 4096) == blocks


def test_extent_size_must_be_whole_blocks():
    with pytest.raises(UsageError, match="5000B is not a whole number of blocks of 4096 bytes"):
        parse_extent_size("5000B", 4096)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (1 << 30, "1 GiB"), (100 << 20, "100 MiB")],
)
def test_shown_sizes(size_bytes, text):
    assert format_size(size_bytes) == text


@given(st.integers(0, 1023), st.integers(0, 5))
def test_shown_sizes_can_be_read_again(count, power):
    assert parse_size(format_size(count << (10 * power))) == count << (10 * power)
