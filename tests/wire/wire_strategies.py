"""Hypothesis strategies for every message and every error, one per class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crucible_emu import errors
from crucible_emu.geometry import EXTENT_DATA_BYTES_MAX, RegionDefinition
from crucible_emu.integrity import EMPTY, ENCRYPTED, PLAIN, BlockContexts
from crucible_emu.wire import messages as m

u8, u32, u64 = (st.integers(0, 2**bits - 1) for bits in (8, 32, 64))
jobs = st.lists(u64, max_size=20).map(tuple)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
addresses = st.builds(m.SocketAddress, st.ip_addresses().map(str), st.integers(0, 65535))
data = st.binary(max_size=200).map(memoryview)


@st.composite
def region_definitions(draw: st.DrawFn) -> RegionDefinition:
    block_size = 1 << draw(st.integers(9, 15))
    blocks = draw(st.integers(1, EXTENT_DATA_BYTES_MAX // block_size))
    return RegionDefinition(block_size, blocks, draw(u32), draw(st.uuids()), draw(st.booleans()))


@st.composite
def contexts(draw: st.DrawFn, kinds: Sequence[int], hashes_of_sealed: bool, count: int | None = None) -> BlockContexts:
    """Contexts of a few blocks: all of one kind, or mixed."""
    if count is None:
        count = draw(st.integers(0, 12))
    one = st.sampled_from(kinds)
    kind = np.array(draw(st.lists(one, min_size=count, max_size=count) | one.map(lambda k: [k] * count)), np.uint8)
    hashes = draw(hnp.arrays(np.uint64, count))
    known = kind != EMPTY if hashes_of_sealed else kind == PLAIN
    sealed = bool((kind == ENCRYPTED).any())
    return BlockContexts(
        kind,
        np.where(known, hashes, np.uint64(0)),
        draw(hnp.arrays(np.uint8, (count, 12))) if sealed else None,
        draw(hnp.arrays(np.uint8, (count, 16))) if sealed else None,
    )


write_contexts = contexts((PLAIN, ENCRYPTED), True)
read_contexts = contexts((EMPTY, PLAIN, ENCRYPTED), False)

details = st.one_of(
    st.builds(errors.OutOfOrder),
    st.builds(errors.GenerationZeroIsIllegal),
    st.builds(errors.GenerationNumberTooLow, u64, u64),
    st.builds(errors.IncompatibleVersion, u32, u32),
    st.builds(errors.EncryptionMismatch, st.booleans(), st.booleans()),
    st.builds(errors.ReadOnlyMismatch, st.booleans(), st.booleans()),
    st.builds(errors.UpstairsIdMismatch, st.uuids(), st.uuids()),
    st.builds(errors.SessionIdMismatch, st.uuids(), st.uuids()),
)


def error(cls: type[errors.CrucibleError]) -> st.SearchStrategy[errors.CrucibleError]:
    if issubclass(cls, errors.TextError):
        return st.builds(cls, texts)
    if cls is errors.MissingContextSlot:
        return st.builds(cls, u64, u32)
    if cls is errors.NegotiationError:
        return st.builds(cls, details)
    return st.builds(cls)


any_error = st.sampled_from(errors.ERRORS).flatmap(error)
unit_result = st.none() | any_error

ids = {"upstairs_id": st.uuids(), "session_id": st.uuids()}
job = {**ids, "job_id": u64}
deps = {**job, "dependencies": jobs}
ack = {**job, "result": unit_result}
step = {"repair_id": u64, "extent_id": u32}
numbers = {"flush_number": u64, "gen_number": u64}
source = {"source_client_id": u8, "source_repair_address": addresses}
write = {**deps, "start": u64, "contexts": write_contexts, "data": data}
promotion = {**ids, "generation": u64}

FIELDS: dict[type[m.Message], dict[str, st.SearchStrategy[Any]]] = {
    m.HereIAm: {
        "version": u32,
        **promotion,
        "read_only": st.booleans(),
        "encrypted": st.booleans(),
        "alternate_versions": st.lists(u32, max_size=5).map(tuple),
    },
    m.YesItsMe: {"version": u32, "repair_addr": addresses},
    m.VersionMismatch: {"version": u32},
    m.ReadOnlyMismatch: {"expected": st.booleans()},
    m.EncryptedMismatch: {"expected": st.booleans()},
    m.PromoteToActive: promotion,
    m.YouAreNowActive: promotion,
    m.YouAreNoLongerActive: {"new_upstairs_id": st.uuids(), "new_session_id": st.uuids(), "new_gen": u64},
    m.UuidMismatch: {"expected_id": st.uuids()},
    m.Ruok: {},
    m.Imok: {},
    m.ExtentClose: step,
    m.ExtentReopen: step,
    m.ExtentFlush: {**step, "client_id": u8, **numbers},
    m.ExtentRepair: {**step, **source, "dest_clients": st.lists(u8, max_size=3).map(tuple)},
    m.RepairAckId: {"repair_id": u64},
    m.ExtentError: {**step, "error": any_error},
    m.ExtentLiveClose: {**deps, "extent_id": u32},
    m.ExtentLiveFlushClose: {**deps, "extent_id": u32, **numbers},
    m.ExtentLiveRepair: {**deps, "extent_id": u32, **source},
    m.ExtentLiveReopen: {**deps, "extent_id": u32},
    m.ExtentLiveNoOp: deps,
    m.ExtentLiveCloseAck: {**job, "result": st.tuples(u64, u64, st.booleans()) | any_error},
    m.ExtentLiveRepairAckId: ack,
    m.ExtentLiveAckId: ack,
    m.RegionInfoPlease: {},
    m.RegionInfo: {"region_def": region_definitions()},
    m.ExtentVersionsPlease: {},
    m.ExtentVersions: {
        "gen_numbers": hnp.arrays(np.uint64, st.integers(0, 9)),
        "flush_numbers": hnp.arrays(np.uint64, st.integers(0, 9)),
        "dirty_bits": hnp.arrays(np.bool_, st.integers(0, 9)),
    },
    m.LastFlush: {"last_flush_number": st.none() | u64},
    m.Write: write,
    m.WriteAck: ack,
    m.Flush: {**deps, **numbers, "snapshot_details": st.none() | texts, "extent_limit": st.none() | u32},
    m.FlushAck: ack,
    m.Barrier: deps,
    m.BarrierAck: ack,
    m.ReadRequest: {**deps, "start": u64, "count": u64},
    m.ReadResponse: {**job, "blocks": read_contexts | any_error, "data": data},
    m.WriteUnwritten: write,
    m.WriteUnwrittenAck: ack,
    m.ErrorReport: {**job, "error": any_error},
    m.Unknown: {"tag": u32, "data": st.binary(max_size=50)},
}
"""Strategies of each message's fields."""


def message(cls: type[m.Message]) -> st.SearchStrategy[Any]:
    return st.builds(cls, **FIELDS[cls])


any_message = st.sampled_from(m.MESSAGES).flatmap(message)


@st.composite
def cuts(draw: st.DrawFn, raw: bytes) -> list[bytes]:
    """``raw`` in pieces."""
    places = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    return [raw[a:b] for a, b in zip([0, *places], [*places, len(raw)])]
