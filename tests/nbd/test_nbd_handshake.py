"""The handshake as a table: what a client says, and everything that it is told."""

import itertools
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nbd_plain_client import BASE, DEPTH, client_flags, contexts, go, option, option_replies, text

from crucible_emu.errors import RemoteError
from crucible_emu.nbd import handshake as h
from crucible_emu.nbd.handshake import ExportInfo, Handshake, Outcome, State, Tls
from crucible_emu.nbd.protocol import Context, Info, Option, Reply, TransmissionFlag

EXPORTS = {
    "": ExportInfo("", 1 << 20, 512),
    "disk": ExportInfo("disk", 1 << 30, 4096, description="a disk"),
    "fixed": ExportInfo("fixed", 4096, 512, read_only=True, multi_conn=False),
}
STRUCTURED = option(Option.STRUCTURED_REPLY)
BOTH = contexts("disk", [BASE, DEPTH])
ACK = (Reply.ACK, b"")


def begun(tls: Tls = Tls.NONE) -> Handshake:
    handshake = Handshake(lambda: list(EXPORTS), EXPORTS.get, tls)
    assert len(handshake.greeting()) == 18
    answer, outcome = handshake.receive(client_flags())
    assert (answer, outcome, handshake.state) == (b"", Outcome.NEED_DATA, State.OPTIONS)
    return handshake


def told(handshake: Handshake, *messages: bytes) -> list[tuple[int, bytes]]:
    """Every reply to the messages, ``(type, data)``, sentences of errors left out."""
    answer, _ = handshake.receive(b"".join(messages))
    return [(kind, b"" if kind & 1 << 31 else data) for _, kind, data in option_replies(answer)]


def context_reply(context: int, name: str) -> tuple[int, bytes]:
    return Reply.META_CONTEXT, struct.pack(">I", context) + name.encode()


def server_reply(name: str) -> tuple[int, bytes]:
    return Reply.SERVER, text(name)


INFO_EXPORT = (Reply.INFO, struct.pack(">HQH", Info.EXPORT, 1 << 30, 0x0D6D))
"""Everything that `disk` can, before structured replies."""
INFO_SIZES = (Reply.INFO, struct.pack(">HIII", Info.BLOCK_SIZE, 4096, 4096, 32 << 20))
INFO_NAME = (Reply.INFO, struct.pack(">H", Info.NAME) + b"disk")
INFO_DESCRIPTION = (Reply.INFO, struct.pack(">H", Info.DESCRIPTION) + b"a disk")


@pytest.mark.parametrize(
    ("says", "hears"),
    [
        ([option(Option.LIST)], [*map(server_reply, EXPORTS), ACK]),
        ([option(Option.LIST, b"x")], [(Reply.ERR_INVALID, b"")]),
        ([option(Option.ABORT, b"whatever")], [ACK]),
        ([option(4)], [(Reply.ERR_UNSUP, b"")]),
        ([option(11), option(Option.ABORT)], [(Reply.ERR_UNSUP, b""), ACK]),
        ([option(0xFFFFFFFF, bytes(1000)), option(Option.ABORT)], [(Reply.ERR_UNSUP, b""), ACK]),
        ([option(Option.STARTTLS)], [(Reply.ERR_UNSUP, b"")]),
        ([go("disk")], [INFO_EXPORT, ACK]),
        ([go("disk", [1, 2, 3])], [INFO_EXPORT, INFO_NAME, INFO_DESCRIPTION, INFO_SIZES, ACK]),
        ([go("disk", [3, 77])], [INFO_EXPORT, INFO_SIZES, ACK]),
        ([go("disk", [3], Option.INFO), option(Option.ABORT)], [INFO_EXPORT, INFO_SIZES, ACK, ACK]),
        ([go("none"), option(Option.ABORT)], [(Reply.ERR_UNKNOWN, b""), ACK]),
        ([go("none", (), Option.INFO)], [(Reply.ERR_UNKNOWN, b"")]),
        ([option(Option.GO, text("disk"))], [(Reply.ERR_INVALID, b"")]),
        ([option(Option.GO, text("disk") + b"\0\2\0\1")], [(Reply.ERR_INVALID, b"")]),
        ([option(Option.GO, b"\0\0\xff\xff" + b"disk\0\0")], [(Reply.ERR_INVALID, b"")]),
        ([option(Option.GO, struct.pack(">I", 2) + b"\xff\xfe\0\0")], [(Reply.ERR_INVALID, b"")]),
        ([go("a\0b")], [(Reply.ERR_INVALID, b"")]),
        ([go("n" * 4097)], [(Reply.ERR_TOO_BIG, b"")]),
        ([option(Option.GO, bytes(h.OPTION_BYTES_MAX + 1)), go("disk")], [(Reply.ERR_TOO_BIG, b""), INFO_EXPORT, ACK]),
        ([STRUCTURED, STRUCTURED], [ACK, (Reply.ERR_INVALID, b"")]),
        ([option(Option.STRUCTURED_REPLY, b"x")], [(Reply.ERR_INVALID, b"")]),
        ([BOTH], [(Reply.ERR_INVALID, b"")]),
        ([STRUCTURED, BOTH], [ACK, context_reply(1, BASE), context_reply(2, DEPTH), ACK]),
        ([STRUCTURED, contexts("disk", [DEPTH])], [ACK, context_reply(2, DEPTH), ACK]),
        ([STRUCTURED, contexts("disk", [])], [ACK, ACK]),
        ([STRUCTURED, contexts("disk", ["base:", "qemu:", "x-y:z", "base:other"])], [ACK, ACK]),
        ([STRUCTURED, contexts("disk", ["allocation"])], [ACK, (Reply.ERR_INVALID, b"")]),
        ([STRUCTURED, contexts("none", [BASE])], [ACK, (Reply.ERR_UNKNOWN, b"")]),
        ([STRUCTURED, option(10, text("disk") + struct.pack(">I", 9))], [ACK, (Reply.ERR_INVALID, b"")]),
        ([STRUCTURED, option(10, text("disk") + struct.pack(">I", 0) + b"?")], [ACK, (Reply.ERR_INVALID, b"")]),
        ([contexts("disk", [], 9)], [context_reply(0, BASE), context_reply(0, DEPTH), ACK]),
        ([contexts("disk", ["base:"], 9)], [context_reply(0, BASE), ACK]),
        ([contexts("disk", ["qemu:", "other:"], 9)], [context_reply(0, DEPTH), ACK]),
        ([contexts("disk", [DEPTH, BASE], 9)], [context_reply(0, BASE), context_reply(0, DEPTH), ACK]),
        ([contexts("disk", ["qemu:dirty-bitmap:"], 9)], [ACK]),
        ([contexts("none", [], 9)], [(Reply.ERR_UNKNOWN, b"")]),
    ],
)
def test_each_option_gets_the_replies_that_the_protocol_asks_for(
    says: Sequence[bytes], hears: list[tuple[int, bytes]]
) -> None:
    assert told(begun(), *says) == hears


def test_every_refusal_carries_a_sentence() -> None:
    handshake = begun()
    answer, _ = handshake.receive(option(99) + go("none") + option(Option.LIST, b"x") + BOTH)
    for _, kind, data in option_replies(answer):
        assert kind & 1 << 31 and len(data.decode()) > 10


@pytest.mark.parametrize(
    ("says", "structured", "chosen"),
    [
        ([go("disk")], False, ()),
        ([STRUCTURED, go("disk")], True, ()),
        ([STRUCTURED, BOTH, go("disk")], True, (Context.ALLOCATION, Context.ALLOCATION_DEPTH)),
        ([STRUCTURED, BOTH, go("fixed")], True, ()),  # agreed for another export
        ([STRUCTURED, BOTH, contexts("disk", [BASE]), go("disk")], True, (Context.ALLOCATION,)),
        ([STRUCTURED, BOTH, contexts("none", [BASE]), go("disk")], True, ()),  # a failure clears
        ([STRUCTURED, BOTH, option(Option.EXPORT_NAME, b"disk")], True, (Context.ALLOCATION, Context.ALLOCATION_DEPTH)),
    ],
)
def test_the_agreement_is_what_was_said_last(says: Sequence[bytes], structured: bool, chosen: tuple[int, ...]) -> None:
    handshake = begun()
    _, outcome = handshake.receive(b"".join(says))
    assert outcome is Outcome.ENTERED and handshake.state is State.TRANSMISSION
    agreement = handshake.agreement
    assert agreement is not None
    assert (agreement.structured, agreement.contexts) == (structured, chosen)


@pytest.mark.parametrize(("flags", "zeroes"), [(0, 124), (1, 124), (2, 0), (3, 0)])
def test_export_name_sends_zeroes_unless_the_client_declined_them(flags: int, zeroes: int) -> None:
    handshake = Handshake(lambda: list(EXPORTS), EXPORTS.get)
    answer, outcome = handshake.receive(client_flags(flags) + option(Option.EXPORT_NAME, b"disk"))
    assert outcome is Outcome.ENTERED
    assert answer == struct.pack(">QH", 1 << 30, 0x0D6D) + bytes(zeroes)


def test_flags_say_what_an_export_can() -> None:
    fixed = EXPORTS["fixed"].flags(structured=True)
    assert TransmissionFlag.READ_ONLY in fixed and TransmissionFlag.SEND_DF in fixed
    assert not fixed & (
        TransmissionFlag.SEND_TRIM
        | TransmissionFlag.SEND_WRITE_ZEROES
        | TransmissionFlag.SEND_FAST_ZERO
        | TransmissionFlag.CAN_MULTI_CONN
    )
    assert EXPORTS["disk"].flags(structured=True) & ~EXPORTS["disk"].flags(False) == TransmissionFlag.SEND_DF


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(client_flags(4), id="unknown handshake flag"),
        pytest.param(client_flags() + b"\0" * 16, id="wrong option magic"),
        pytest.param(client_flags() + option(Option.EXPORT_NAME, b"none"), id="no such export"),
        pytest.param(client_flags() + option(Option.EXPORT_NAME, b"\xff"), id="name is not UTF-8"),
        pytest.param(client_flags() + struct.pack(">QII", 0x49484156454F5054, 1, 1 << 20), id="endless name"),
        pytest.param(client_flags() + struct.pack(">QII", 0x49484156454F5054, 7, 1 << 31), id="endless option"),
        pytest.param(client_flags() + option(Option.LIST) * (h.OPTIONS_MAX + 1), id="endless haggling"),
    ],
)
def test_what_cannot_be_answered_costs_the_connection(data: bytes) -> None:
    with pytest.raises(RemoteError):
        Handshake(lambda: [], EXPORTS.get).receive(data)


def test_an_oversized_option_is_skipped_without_being_kept() -> None:
    handshake = begun()
    length = h.SKIPPED_BYTES_MAX
    answer, _ = handshake.receive(struct.pack(">QII", 0x49484156454F5054, 99, length))
    assert [kind for _, kind, _ in option_replies(answer)] == [Reply.ERR_TOO_BIG]
    chunk = bytes(1 << 20)
    for _ in range(length // len(chunk)):
        assert handshake.receive(chunk) == (b"", Outcome.NEED_DATA)
        assert len(handshake.rest()) == 0
    assert told(handshake, option(Option.ABORT)) == [ACK]


# --- TLS ---


def test_tls_forgets_what_was_agreed_in_the_clear() -> None:
    handshake = begun(Tls.OFFERED)
    assert told(handshake, STRUCTURED, BOTH)[-1] == ACK
    answer, outcome = handshake.receive(option(Option.STARTTLS))
    assert option_replies(answer) == [(Option.STARTTLS, Reply.ACK, b"")]
    assert (outcome, handshake.state) == (Outcome.UPGRADE, State.TLS)
    handshake.encrypted_now()
    assert told(handshake, option(Option.STARTTLS), go("disk")) == [(Reply.ERR_INVALID, b""), INFO_EXPORT, ACK]
    assert handshake.agreement is not None
    assert (handshake.agreement.structured, handshake.agreement.contexts) == (False, ())


def test_options_put_in_behind_starttls_are_not_taken_for_encrypted() -> None:
    with pytest.raises(RemoteError, match="in the clear"):
        begun(Tls.OFFERED).receive(option(Option.STARTTLS) + go("disk"))


def test_required_tls_answers_nothing_else_before_it() -> None:
    handshake = begun(Tls.REQUIRED)
    required = (Reply.ERR_TLS_REQD, b"")
    says = [option(Option.LIST), go("disk"), go("none", (), Option.INFO), STRUCTURED, BOTH, option(99)]
    assert told(handshake, *says) == [required] * len(says)
    with pytest.raises(RemoteError, match="TLS only"):
        begun(Tls.REQUIRED).receive(option(Option.EXPORT_NAME, b"disk"))
    assert told(begun(Tls.REQUIRED), option(Option.ABORT)) == [ACK]
    handshake.receive(option(Option.STARTTLS))
    handshake.encrypted_now()
    assert told(handshake, go("disk")) == [INFO_EXPORT, ACK]


def test_a_client_without_fixed_newstyle_gets_no_tls() -> None:
    handshake = Handshake(lambda: [], EXPORTS.get, Tls.OFFERED)
    answer, _ = handshake.receive(client_flags(0) + option(Option.STARTTLS))
    assert [kind for _, kind, _ in option_replies(answer)] == [Reply.ERR_UNSUP]


# --- the ends ---


def test_at_shutdown_only_abort_is_answered() -> None:
    handshake = begun()
    handshake.shutting_down = True
    shutdown = (Reply.ERR_SHUTDOWN, b"")
    assert told(handshake, option(Option.LIST), go("disk"), option(99)) == [shutdown] * 3
    assert told(handshake, option(Option.ABORT)) == [ACK]
    assert handshake.state is State.CLOSED


def test_a_step_that_the_table_does_not_list_cannot_happen() -> None:
    with pytest.raises(RuntimeError, match="no way from OPTIONS by ENCRYPTED"):
        begun().encrypted_now()


def test_every_option_names_a_method() -> None:
    assert all(callable(getattr(Handshake, rule.method)) for rule in h.OPTIONS.values())
    assert set(h.OPTIONS) == set(Option)


DIALOGUE = b"".join(
    [client_flags(), option(Option.LIST), option(99, b"abc"), go("none"), STRUCTURED, BOTH, go("disk", [1, 3]), b"rest"]
)


@given(cuts=st.lists(st.integers(0, len(DIALOGUE)), max_size=20))
def test_answers_do_not_depend_on_how_the_bytes_arrive(cuts: list[int]) -> None:
    whole = Handshake(lambda: list(EXPORTS), EXPORTS.get)
    expected, _ = whole.receive(DIALOGUE)
    edges = [0, *sorted(cuts), len(DIALOGUE)]
    parts = Handshake(lambda: list(EXPORTS), EXPORTS.get)
    answers = b"".join(parts.receive(DIALOGUE[a:b])[0] for a, b in itertools.pairwise(edges))
    assert answers == expected
    assert parts.agreement == whole.agreement
    assert parts.rest() == whole.rest() == b"rest"


@given(data=st.binary(max_size=200), tls=st.sampled_from(Tls))
def test_no_bytes_do_anything_but_answer_or_raise_remote_error(data: bytes, tls: Tls) -> None:
    handshake = begun(tls)
    try:
        handshake.receive(data)
        handshake.receive(option(Option.ABORT))
    except RemoteError:
        pass
