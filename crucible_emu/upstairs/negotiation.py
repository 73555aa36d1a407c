"""What the Upstairs does with each message of a Downstairs (upstairs-volume.md §2.5, wire-protocol.md §6.3, §7.6).

What it is for: :data:`HANDLERS` names one small function per message. Which state a message is legal in is not decided
here but by the transition table: a function asks for the transition first and acts afterwards.

Why it is safe: a setting that can never fit (encryption, read-only, another session) disables the disk with a reason;
everything else that does not fit raises :class:`errors.RemoteError`, which costs that one connection.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from crucible_emu import errors
from crucible_emu.upstairs.reconciliation import ExtentVersions
from crucible_emu.upstairs.rules import JobKind
from crucible_emu.upstairs.states import ClientEvent, Mode, Phase, StopReason, UpstairsState
from crucible_emu.wire import messages as m
from crucible_emu.wire.constants import VERSION
from crucible_emu.wire.runs import AckRun

if TYPE_CHECKING:
    from crucible_emu.upstairs.core import UpstairsCore
    from crucible_emu.upstairs.members import Client

Handler = Callable[["UpstairsCore", "Client", Any], None]


def _refuse_settings(core: UpstairsCore, client: Client, reason: StopReason, detail: errors.NegotiationDetail) -> None:
    core.stop_client(client, reason)
    core.disable(errors.NegotiationError(detail))


def connected(core: UpstairsCore, index: int, connection_id: int) -> None:
    """A connection is open: introduce ourselves."""
    client = core.clients[index]
    if connection_id != client.connection_id or client.stop_requested:
        return
    client.connected += 1
    who = core.identity
    hello = m.HereIAm(VERSION, who.upstairs_id, who.session_id, core.generation, who.read_only, who.encrypted, ())
    core.send(index, hello)


def _yes_its_me(core: UpstairsCore, client: Client, message: m.YesItsMe) -> None:
    if message.version != VERSION:
        core.stop_client(client, StopReason.INCOMPATIBLE_VERSION)
        return
    core.move(client, ClientEvent.YES_ITS_ME)
    client.repair_address = message.repair_addr
    who = core.identity
    core.send(client.index, m.PromoteToActive(who.upstairs_id, who.session_id, core.generation))


def _version_mismatch(core: UpstairsCore, client: Client, message: m.VersionMismatch) -> None:
    core.report("warning", "replica speaks another version", client=client.index, version=message.version)
    core.stop_client(client, StopReason.INCOMPATIBLE_VERSION)


def _read_only_mismatch(core: UpstairsCore, client: Client, message: m.ReadOnlyMismatch) -> None:
    detail = errors.ReadOnlyMismatch(core.identity.read_only, message.expected)
    _refuse_settings(core, client, StopReason.INCOMPATIBLE_SETTINGS, detail)


def _encrypted_mismatch(core: UpstairsCore, client: Client, message: m.EncryptedMismatch) -> None:
    detail = errors.EncryptionMismatch(core.identity.encrypted, message.expected)
    _refuse_settings(core, client, StopReason.INCOMPATIBLE_SETTINGS, detail)


def _you_are_now_active(core: UpstairsCore, client: Client, message: m.YouAreNowActive) -> None:
    who = core.identity
    detail: errors.NegotiationDetail | None = None
    if message.upstairs_id != who.upstairs_id:
        detail = errors.UpstairsIdMismatch(who.upstairs_id, message.upstairs_id)
    elif message.session_id != who.session_id:
        detail = errors.SessionIdMismatch(who.session_id, message.session_id)
    elif message.generation != core.generation:
        detail = errors.GenerationNumberTooLow(core.generation, message.generation)
    if detail is not None:
        _refuse_settings(core, client, StopReason.INCOMPATIBLE_SESSION, detail)
        return
    core.move(client, ClientEvent.NOW_ACTIVE)
    client.refusals = 0
    core.send(client.index, m.RegionInfoPlease())


def _no_longer_active(core: UpstairsCore, client: Client, message: m.YouAreNoLongerActive) -> None:
    core.report("warning", "another Upstairs took over", client=client.index, generation=message.new_gen)
    core.disable(errors.NoLongerActive())


def _uuid_mismatch(core: UpstairsCore, client: Client, message: m.UuidMismatch) -> None:
    core.disable(errors.UuidMismatch())


def _region_info(core: UpstairsCore, client: Client, message: m.RegionInfo) -> None:
    found = message.region_def
    if found.encrypted != core.identity.encrypted:
        detail = errors.EncryptionMismatch(core.identity.encrypted, found.encrypted)
        _refuse_settings(core, client, StopReason.INCOMPATIBLE_SETTINGS, detail)
        return
    problem = _incompatible(core, client, message)
    if problem is not None:
        core.report("warning", "replica does not fit", client=client.index, problem=problem)
        core.stop_client(client, StopReason.INCOMPATIBLE_SETTINGS)
        if core.state is UpstairsState.GO_ACTIVE:
            core.disable(errors.RegionIncompatible(problem))
        return
    core.move(client, ClientEvent.REGION_INFO)
    client.region_uuid = found.uuid
    if core.definition is None:
        core.definition = found
    if client.state.phase is Phase.GET_EXTENT_VERSIONS:
        core.send(client.index, m.ExtentVersionsPlease())
    else:
        core.report("info", "replica is back and gets what it missed", client=client.index)
        core.replay(client)
        core.progress()  # another replica may have waited for one to be repaired from


def _incompatible(core: UpstairsCore, client: Client, message: m.RegionInfo) -> str | None:
    """Why this region cannot be a member of the set, or ``None``. The real program aborts on each of these."""
    found = message.region_def
    if core.definition is not None and not core.definition.same_geometry(found):
        wanted = core.definition
        return (
            f"replica {client.index} has {found.extent_count} extents of {found.blocks_per_extent} blocks of "
            f"{found.block_size} bytes, the disk has {wanted.extent_count} of {wanted.blocks_per_extent} of "
            f"{wanted.block_size}"
        )
    for other in core.clients:
        # Safety: one region behind two clients would count one copy twice.
        if other is not client and other.region_uuid == found.uuid and not core.identity.read_only:
            return f"replicas {other.index} and {client.index} are the same region {found.uuid}"
    known = client.region_uuid is not None and client.region_uuid != found.uuid
    if known and core.state is UpstairsState.ACTIVE and client.state.mode is not Mode.REPLACED:
        return f"replica {client.index} is region {found.uuid}, it was {client.region_uuid}"
    return None


def _extent_versions(core: UpstairsCore, client: Client, message: m.ExtentVersions) -> None:
    counts = {len(message.gen_numbers), len(message.flush_numbers), len(message.dirty_bits)}
    wanted = core.definition.extent_count if core.definition else len(message.gen_numbers)
    if counts != {wanted}:
        raise errors.RemoteError(f"reports versions of {sorted(counts)} extents, the region has {wanted}")
    core.move(client, ClientEvent.EXTENT_VERSIONS)
    client.versions = ExtentVersions(
        np.asarray(message.gen_numbers, np.uint64),
        np.asarray(message.flush_numbers, np.uint64),
        np.asarray(message.dirty_bits, np.bool_),
    )
    if client.state.phase is Phase.WAIT_QUORUM:
        core.check_quorum()
    else:
        core.progress()


def _repair_ack(core: UpstairsCore, client: Client, message: m.RepairAckId) -> None:
    if core.reconciliation is None:
        return
    if core.reconciliation.acknowledged(client.index, message.repair_id):
        core.next_reconciliation_step()


def _extent_error(core: UpstairsCore, client: Client, message: m.ExtentError) -> None:
    if core.reconciliation is not None:
        core.abort_reconciliation(f"client {client.index}, extent {message.extent_id}: {message.error}")


def _imok(core: UpstairsCore, client: Client, message: m.Imok) -> None:
    """A sign of life; the connection's driver counts it."""


def acknowledged(core: UpstairsCore, index: int, connection_id: int, run: AckRun) -> None:
    """Acks that say Ok, of one class: those for one job settle it at once. What is not as it should be is looked at
    message by message."""
    job_ids, at, total = run.job_ids, 0, len(run.job_ids)
    while at < total:
        job = core.jobs.find(job_ids[at])
        stop, mask = at + 1, 0
        if job is not None and core.hears(index, connection_id, run) and run.cls in ACKS_OF.get(job.kind, ()):
            first, count = job.first_id, job.count
            if job_ids[at] == first and list(job_ids[at : at + count]) == list(range(first, first + count)):
                stop, mask = at + count, job.full
            else:  # of a train that came in parts, as where some of it waits for a repair
                bits = [1 << (job_id - first) for job_id in takewhile(job.contains, islice(job_ids, at, None))]
                mask, stop = sum(bits), at + len(bits)
                if mask.bit_count() != len(bits):  # one of them twice
                    mask, stop = bits[0], at + 1
        if job is not None and mask and job.in_progress[index] & mask == mask:
            core.done(job, index, mask)
        else:
            for job_id in job_ids[at:stop]:
                core.message(index, connection_id, run.cls(run.upstairs_id, run.session_id, job_id, None))
        at = stop


def _ack(core: UpstairsCore, client: Client, message: Any) -> None:
    who = core.identity
    if message.upstairs_id != who.upstairs_id or message.session_id != who.session_id:
        core.report("warning", "acknowledgement for another session", client=client.index)
        return
    job = core.jobs.find(message.job_id)
    if job is None:
        return
    mask = 1 << (message.job_id - job.first_id)
    if (job.skipped[client.index] | job.failed[client.index]) & mask:
        return
    if not job.in_progress[client.index] & mask:
        raise errors.RemoteError(f"acknowledges job {message.job_id} twice")
    if type(message) not in ACKS_OF.get(job.kind, ()):
        raise errors.RemoteError(f"answers the {job.kind.value} {message.job_id} with another acknowledgement")
    if isinstance(message.result, errors.CrucibleError):
        core.failed(job, client.index, mask, message.result)
        return
    if job.kind is JobKind.EXTENT_CLOSE and message.result is not None and core.repair is not None:
        core.repair.closed(job.starts[0], client.index, message.result)
    core.done(job, client.index, mask)


def _error_report(core: UpstairsCore, client: Client, message: m.ErrorReport) -> None:
    """The real Downstairs reports an error and tries again at once, without end (§7.3). Waiting for it to succeed would
    hold up everything behind the job, so the report counts as the job's failure."""
    job = core.jobs.find(message.job_id)
    if job is not None and job.in_progress[client.index] >> (message.job_id - job.first_id) & 1:
        core.failed(job, client.index, 1 << (message.job_id - job.first_id), message.error)


ACKS_OF: dict[JobKind, tuple[type[Any], ...]] = {
    JobKind.WRITE: (m.WriteAck,),
    JobKind.WRITE_UNWRITTEN: (m.WriteUnwrittenAck,),
    JobKind.FLUSH: (m.FlushAck,),
    JobKind.SNAPSHOT_FLUSH: (m.FlushAck,),
    JobKind.BARRIER: (m.BarrierAck,),
    # A replica that is left out of a step is sent a no-op under the step's id.
    JobKind.EXTENT_CLOSE: (m.ExtentLiveCloseAck, m.ExtentLiveAckId),
    JobKind.EXTENT_REPAIR: (m.ExtentLiveRepairAckId, m.ExtentLiveAckId),
    JobKind.EXTENT_NO_OP: (m.ExtentLiveAckId,),
    JobKind.EXTENT_REOPEN: (m.ExtentLiveAckId,),
}
"""Which acknowledgements each kind of job is answered with; reads are answered through the driver, with data."""

HANDLERS: dict[type, Handler] = {
    m.YesItsMe: _yes_its_me,
    m.VersionMismatch: _version_mismatch,
    m.ReadOnlyMismatch: _read_only_mismatch,
    m.EncryptedMismatch: _encrypted_mismatch,
    m.YouAreNowActive: _you_are_now_active,
    m.YouAreNoLongerActive: _no_longer_active,
    m.UuidMismatch: _uuid_mismatch,
    m.RegionInfo: _region_info,
    m.ExtentVersions: _extent_versions,
    m.RepairAckId: _repair_ack,
    m.ExtentError: _extent_error,
    m.Imok: _imok,
    m.WriteAck: _ack,
    m.WriteUnwrittenAck: _ack,
    m.FlushAck: _ack,
    m.BarrierAck: _ack,
    m.ExtentLiveCloseAck: _ack,
    m.ExtentLiveRepairAckId: _ack,
    m.ExtentLiveAckId: _ack,
    m.ErrorReport: _error_report,
}
