"""The client's handshake: against our own server's, and against servers that nobody should have."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbd_scripts import SIZE, converse, in_pieces, server_side

from crucible_emu.client.failures import ExportRefused
from crucible_emu.client.nbd_handshake import OPTION_OF, TRANSITIONS, Handshake, Heard, Outcome, State
from crucible_emu.errors import RemoteError
from crucible_emu.nbd import protocol as p
from crucible_emu.nbd.handshake import ExportInfo, Tls

GREETING = struct.pack(">QQH", p.GREETING_MAGIC, p.OPTION_MAGIC, 3)
EXPORT = struct.pack(">QH", SIZE, 5)
SIZES = st.lists(st.integers(1, 40), max_size=200)


def reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return struct.pack(">QIII", p.OPTION_REPLY_MAGIC, option, kind, len(data)) + data


def info(data: bytes) -> bytes:
    return reply(p.Option.GO, p.Reply.INFO, data)


UNSUPPORTED = p.Reply.ERR_UNSUP
PLAIN = GREETING + reply(p.Option.STRUCTURED_REPLY, UNSUPPORTED)
"""A server without structured replies, up to GO."""


@given(SIZES, st.sampled_from([512, 4096]), st.booleans())
def test_our_server_is_understood_however_its_bytes_come(sizes: list[int], block: int, read_only: bool) -> None:
    ours = Handshake("disk")
    theirs = server_side(ExportInfo("disk", SIZE, block, read_only=read_only, description="a disk"))
    assert converse(ours, theirs, sizes) is Outcome.TRANSMIT
    export = ours.export
    assert (export.size_bytes, export.block_size, export.read_only) == (SIZE, block, read_only)
    assert export.structured
    assert export.allocation == p.Context.ALLOCATION
    assert export.description == "a disk"
    assert ours.rest() == b""


def test_tls_comes_before_everything_else() -> None:
    ours, theirs = Handshake("", tls=True), server_side(tls=Tls.REQUIRED)
    assert converse(ours, theirs, []) is Outcome.ENCRYPT
    theirs.encrypted_now()
    to_client, _ = theirs.receive(ours.encrypted())
    while (said := ours.receive(to_client))[1] is not Outcome.TRANSMIT:
        to_client, _ = theirs.receive(said[0])
    assert theirs.agreement is not None and theirs.agreement.structured


@pytest.mark.parametrize(
    ("tls", "theirs", "sentence"),
    [
        (True, Tls.NONE, "the server has no TLS: use nbd://"),
        (False, Tls.REQUIRED, "over TLS only: use nbds://"),
        (False, Tls.NONE, "refuses the export 'missing': there is no export 'missing'"),
    ],
)
def test_a_server_that_refuses_is_quoted(tls: bool, theirs: Tls, sentence: str) -> None:
    with pytest.raises(ExportRefused, match=sentence):
        converse(Handshake("missing", tls=tls), server_side(tls=theirs), [])


def test_a_server_without_structured_replies_is_taken_as_it_is() -> None:
    ours = Handshake("")
    said, _ = ours.receive(PLAIN)
    assert said[-4:] == struct.pack(">HH", p.Info.DESCRIPTION, p.Info.BLOCK_SIZE)
    _, outcome = ours.receive(info(struct.pack(">H", p.Info.EXPORT) + EXPORT) + reply(p.Option.GO, p.Reply.ACK))
    assert outcome is Outcome.TRANSMIT
    assert (ours.export.structured, ours.export.allocation, ours.export.block_size) == (False, None, 1)


@pytest.mark.parametrize("no_zeroes", [True, False])
def test_a_server_without_go_is_asked_by_name(no_zeroes: bool) -> None:
    ours = Handshake("old")
    greeting = struct.pack(">QQH", p.GREETING_MAGIC, p.OPTION_MAGIC, 3 if no_zeroes else 1)
    refusals = reply(p.Option.STRUCTURED_REPLY, UNSUPPORTED), reply(p.Option.GO, UNSUPPORTED)
    said, _ = ours.receive(greeting + b"".join(refusals))
    assert said.endswith(struct.pack(">QII", p.OPTION_MAGIC, p.Option.EXPORT_NAME, 3) + b"old")
    _, outcome = ours.receive(EXPORT + bytes(0 if no_zeroes else 124))
    assert outcome is Outcome.TRANSMIT
    assert ours.export.size_bytes == SIZE


def test_a_server_without_options_is_asked_by_name() -> None:
    ours = Handshake("x")
    said, _ = ours.receive(struct.pack(">QQH", p.GREETING_MAGIC, p.OPTION_MAGIC, 0))
    assert said == struct.pack(">IQII", 0, p.OPTION_MAGIC, p.Option.EXPORT_NAME, 1) + b"x"


ACK_GO = reply(p.Option.GO, p.Reply.ACK)


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        (b"HTTP/1.1 200", "no NBD server"),
        (struct.pack(">QQH", p.GREETING_MAGIC, 0x420281861253, 0), "old style"),
        (GREETING + b"x" * 20, "not with its magic"),
        (GREETING + reply(p.Option.GO, p.Reply.ACK), "STRUCTURED_REPLY was asked"),
        (GREETING + struct.pack(">QIII", p.OPTION_REPLY_MAGIC, 8, 1, 1 << 30), "at most"),
        (GREETING + reply(p.Option.STRUCTURED_REPLY, p.Reply.ACK, b"more"), "carries 4 bytes"),
        (GREETING + reply(p.Option.STRUCTURED_REPLY, p.Reply.SERVER), "a reply of type 2"),
        (PLAIN + ACK_GO, "without saying how large"),
        (PLAIN + info(b"\0"), "has no type"),
        (PLAIN + info(struct.pack(">H", p.Info.EXPORT) + EXPORT[:-1]), "not in 10"),
        (PLAIN + info(struct.pack(">HQH", p.Info.EXPORT, 1 << 63, 1)), "cannot be"),
        (PLAIN + info(struct.pack(">HIII", p.Info.BLOCK_SIZE, 3, 4096, 4096)), "a power of two"),
        (PLAIN + info(struct.pack(">HIII", p.Info.BLOCK_SIZE, 4096, 512, 4096)), "contradict"),
        (PLAIN + info(struct.pack(">HI", p.Info.BLOCK_SIZE, 512)), "12 bytes"),
        (PLAIN + info(struct.pack(">H", p.Info.DESCRIPTION)) * 300, "more than 256 replies"),
    ],
)
def test_what_must_not_be_sent_ends_the_handshake(sent: bytes, sentence: str) -> None:
    with pytest.raises(RemoteError, match=sentence):
        Handshake("").receive(sent)


def test_bytes_in_the_clear_after_starttls_are_somebody_elses() -> None:
    with pytest.raises(RemoteError, match="in the clear"):
        Handshake("", tls=True).receive(GREETING + reply(p.Option.STARTTLS, p.Reply.ACK) + b"x")


@given(st.binary(max_size=400), st.sampled_from([b"", GREETING, PLAIN]), SIZES)
def test_no_server_makes_it_crash(sent: bytes, before: bytes, sizes: list[int]) -> None:
    ours = Handshake("")
    try:
        for piece in in_pieces(before + sent, sizes):
            ours.receive(piece)
            if ours.state is State.TRANSMISSION:
                break
    except (RemoteError, ExportRefused):
        pass


def test_every_state_that_asks_can_be_answered() -> None:
    asked = {state for state, _ in TRANSITIONS}
    assert set(OPTION_OF) <= asked
    reached = set(TRANSITIONS.values()) | {State.GREETING}
    assert reached == set(State)
    assert {heard for _, heard in TRANSITIONS} == set(Heard)
