"""Which layer of the disk a stack belongs to: a literal table, and the sums over it.

What it is for: a sampler (:mod:`bench.sampled`) knows functions; somebody who wants to make the disk faster thinks in
layers: parse, admission, hash, scatter, reply. :data:`LAYERS` says what there is, :data:`CALLS` and :data:`FRAMES` what
belongs to it, :func:`layer_of` puts a stack into exactly one, and :func:`table` makes costs of it.

What it guarantees: every stack has one layer, because the search ends at the first rule that fits and whatever none
fits is :data:`OTHER`. The sum over all layers is the CPU time per operation that was measured: samples say what share
each layer has, ``/proc`` and fio say of what.

How a stack is read: a system call first, where the innermost call is one that :data:`CALLS` names; then the frames from
the inside out, each against :data:`FRAMES` from the top. What is named nowhere (numpy, geometry, the files under a
region) belongs to whoever called it.

A frame is ``module:function``, a call into C that was under way the last entry in brackets, ``[os.pwrite]``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.sampled import COLLECTOR, OTHER_THREADS, SAMPLER

Stack = Sequence[str]


@dataclass(frozen=True, slots=True)
class Layer:
    """One row of the table: what it does, and what would make it cheaper."""

    name: str
    what: str
    cheaper: str


@dataclass(frozen=True, slots=True)
class Frame:
    """A rule: functions of ``module`` (and of modules below it) whose qualified name begins with ``function``."""

    layer: str
    module: str
    function: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """A rule: calls into C by one of ``names`` (the last part of what is called) out of ``module``."""

    layer: str
    module: str
    names: frozenset[str]


RECEIVE, REPLY = "receive and parse", "reply"
GUEST, JOBS, ORDER = "admission: guest", "admission: jobs", "admission: Downstairs"
HASH, WRITE, READ, FLUSH = "hash and encrypt", "region: write", "region: read", "region: flush"
LOOP, THREADS = "event loop", "hand-over to threads"
K_IN, K_OUT, K_WAIT = "kernel: receive", "kernel: send", "kernel: wait for sockets"
K_READ, K_WRITE, K_SYNC = "kernel: read files", "kernel: write files", "kernel: sync files"
GARBAGE, OBSERVER, OTHER = "garbage collection", "sampler", "everything else"

LAYERS = (
    Layer(RECEIVE, "Takes requests out of the bytes that came.", "Larger batches; fewer objects for each request."),
    Layer(GUEST, "Checks requests and joins those that go together.", "One pass over a batch, not one for each check."),
    Layer(
        JOBS,
        "Makes jobs of them, in order, for each replica; answers and forgets them.",
        "Whatever is done three times, once for each replica, done once.",
    ),
    Layer(ORDER, "Three times: whether a job may pass what is under way.", "The same answer for three replicas."),
    Layer(
        HASH,
        "A hash for each block, or its encryption, and the comparison when it is read.",
        "Nothing in Python: it is one call for each block already; a hash of many blocks in one call of C.",
    ),
    Layer(
        WRITE,
        "Three times: blocks into memory, where they wait for the flush, and their contexts beside them.",
        "Fewer calls of numpy for each batch (each has a floor of 0.3 to 5 µs); one copy that three replicas share.",
    ),
    Layer(
        READ,
        "Blocks from memory or from the file, and what is known about them.",
        "Neighbours in one system call; contexts of a batch looked up at once.",
    ),
    Layer(
        FLUSH,
        "Three times: staged blocks into their files, in the order that a loss of power survives.",
        "Fewer and larger writes: what lies side by side at once; one plan for three replicas.",
    ),
    Layer(REPLY, "Makes replies, and gives buffers back.", "Headers of a whole batch packed at once."),
    Layer(LOOP, "Trio: which task is next, which socket is ready.", "Fewer rounds: more requests in each."),
    Layer(
        THREADS,
        "Work that waits for a device goes to threads and comes back.",
        "Fewer trips: several steps, or several replicas, in one.",
    ),
    Layer(K_IN, "Requests out of the socket: a copy of each payload.", "Larger batches; nothing for the copy itself."),
    Layer(K_OUT, "Replies into the socket: a copy of what was read.", "Larger batches; nothing for the copy itself."),
    Layer(K_WAIT, "Asks whether a socket has something.", "Asking less: receive at once, and wait only for nothing."),
    Layer(K_READ, "Blocks out of the page cache.", "A map of the file, where what is read is cached."),
    Layer(K_WRITE, "Blocks and contexts into the page cache.", "Fewer calls; a context beside its block."),
    Layer(K_SYNC, "Waits until files are on the disk, and puts them there.", "Fewer files and fewer phases."),
    Layer(GARBAGE, "Python looks for circles of objects.", "Fewer objects that live for more than one batch."),
    Layer(OBSERVER, "This profile itself; absent without it.", "Not needed: it is no cost of the disk."),
    Layer(OTHER, "What no rule names: start and end, statistics, the control API.", "A rule, if it grows."),
)

_TRANSPORT, _STORAGE = "crucible_emu.nbd.transport", "crucible_emu.region"
CALLS = (
    Call(K_IN, _TRANSPORT, frozenset({"recv_into", "recvmsg_into", "receive"})),
    Call(K_OUT, _TRANSPORT, frozenset({"send", "sendmsg"})),
    Call(K_WAIT, "trio._core._io_epoll", frozenset({"poll", "register", "modify", "unregister"})),
    Call(THREADS, "trio._core._wakeup_socketpair", frozenset({"send", "recv"})),
    Call(K_READ, _STORAGE, frozenset({"pread", "preadv"})),
    Call(K_WRITE, _STORAGE, frozenset({"pwrite", "pwritev", "ftruncate"})),
    Call(K_SYNC, _STORAGE, frozenset({"fdatasync", "fsync", "syncfs", "sync_file_range"})),
)

FRAMES = (
    Frame(GUEST, "crucible_emu.nbd.connection", "Transmission._admit"),
    Frame(GUEST, "crucible_emu.nbd.alignment"),
    Frame(REPLY, "crucible_emu.nbd.replies"),
    Frame(REPLY, "crucible_emu.nbd.at_once", "ReadReplies"),
    Frame(REPLY, "crucible_emu.nbd.connection", "Transmission._completed"),
    Frame(REPLY, "crucible_emu.nbd.connection", "Transmission._send"),
    Frame(REPLY, "crucible_emu.nbd.connection", "Transmission._left"),
    Frame(REPLY, "crucible_emu.nbd.connection", "Transmission._discard"),
    Frame(REPLY, "crucible_emu.nbd.transport", "SocketTransport.send"),
    Frame(REPLY, "crucible_emu.nbd.transport", "TlsTransport.send"),
    Frame(REPLY, "crucible_emu.nbd.transport", "advance"),
    Frame(REPLY, "crucible_emu.nbd.buffers", "PooledBuffer.release"),
    Frame(RECEIVE, "crucible_emu.nbd"),
    Frame(GUEST, "crucible_emu.upstairs.guest"),
    Frame(GUEST, "crucible_emu.upstairs.sealed_writes"),
    Frame(GUEST, "crucible_emu.upstairs.trains"),
    Frame(GUEST, "crucible_emu.upstairs.zeroing"),
    Frame(HASH, "crucible_emu.upstairs.sealer"),
    Frame(GUEST, "crucible_emu.volume"),
    Frame(READ, "crucible_emu.upstairs.single_reads"),
    Frame(READ, "crucible_emu.upstairs.gathered_read"),
    Frame(ORDER, "crucible_emu.upstairs.local_link"),
    Frame(JOBS, "crucible_emu.upstairs"),
    Frame(FLUSH, "crucible_emu.downstairs.flushes"),
    Frame(THREADS, "crucible_emu.downstairs.runner", "Runner._in_thread"),
    Frame(ORDER, "crucible_emu.downstairs"),
    Frame(HASH, "crucible_emu.integrity"),
    Frame(HASH, "crucible_emu.encryption"),
    Frame(HASH, "crucible_emu.aead"),
    Frame(HASH, "crucible_emu.boringssl"),
    Frame(HASH, "crucible_emu.cipher_process"),
    Frame(HASH, "tink"),
    Frame(READ, "crucible_emu.region.reading"),
    Frame(FLUSH, "crucible_emu.region.flush"),
    Frame(FLUSH, "crucible_emu.region.scatter"),
    Frame(FLUSH, "crucible_emu.region.redo"),
    Frame(FLUSH, "crucible_emu.region.writing", "StagedWriter.begin"),
    Frame(FLUSH, "crucible_emu.region.writing", "StagedWriter.finish"),
    Frame(FLUSH, "crucible_emu.region.writing", "StagedWriter.abandon"),
    Frame(FLUSH, "crucible_emu.region.inplace", "InPlaceFlush"),
    Frame(FLUSH, "crucible_emu.region.inplace", "InPlaceWriter.flush_extent"),
    Frame(FLUSH, "crucible_emu.region.region", "Region.begin_flush"),
    Frame(FLUSH, "crucible_emu.region.region", "Region.begin_destage"),
    Frame(FLUSH, "crucible_emu.region.region", "Region.finish_flush"),
    Frame(FLUSH, "crucible_emu.region.region", "Region.abandon_flush"),
    Frame(READ, "crucible_emu.region.region", "Region.read"),
    Frame(WRITE, "crucible_emu.region.region", "Region.write"),
    Frame(WRITE, "crucible_emu.region.region", "Region.has_room"),
    Frame(WRITE, "crucible_emu.region.region", "Region.wants_destage"),
    Frame(WRITE, "crucible_emu.region.writing"),
    Frame(WRITE, "crucible_emu.region.inplace"),
    Frame(WRITE, "crucible_emu.region.staging", "Staging.put"),
    Frame(THREADS, "trio._threads"),
    Frame(THREADS, "trio._core._thread_cache"),
    Frame(THREADS, "trio._core._wakeup_socketpair"),
    Frame(THREADS, "trio._core._entry_queue"),
    Frame(LOOP, "trio"),
)
_OWN: dict[tuple[str, ...], str] = {(SAMPLER,): OBSERVER, (COLLECTOR,): GARBAGE}


def _within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


def layer_of(stack: Stack) -> str:
    """The layer of a stack, which is told from the outside in."""
    own = _OWN.get(tuple(stack))
    if own is not None:
        return own
    frames = list(stack)
    if frames and frames[-1].startswith("["):
        name = frames.pop().strip("[]").rpartition(".")[2]
        module = frames[-1].partition(":")[0] if frames else ""
        for call in CALLS:
            if name in call.names and _within(module, call.module):
                return call.layer
    for frame in reversed(frames):
        module, _, function = frame.partition(":")
        for rule in FRAMES:
            if _within(module, rule.module) and function.startswith(rule.function):
                return rule.layer
    return OTHER


@dataclass(frozen=True, slots=True)
class Cost:
    """What one layer costs an operation: CPU time in µs, how much of it in other threads, its share of all (0 to 1)."""

    layer: str
    cpu_us: float
    in_threads_us: float
    share: float


def table(stacks: Iterable[tuple[Stack, float]], cpu_us: float) -> list[Cost]:
    """Every layer's cost where an operation costs ``cpu_us`` altogether, in the order of :data:`LAYERS`.

    ``stacks``: each with its weight, in any unit. Raises :class:`ValueError` where they weigh nothing.
    """
    spent = {layer.name: [0.0, 0.0] for layer in LAYERS}
    total = 0.0
    for stack, weight in stacks:
        cell = spent[layer_of(stack)]
        cell[0] += weight
        cell[1] += weight if stack[0] == OTHER_THREADS else 0.0
        total += weight
    if total <= 0:
        raise ValueError("no stack was sampled: measure for longer")
    return [
        Cost(name, cpu_us * all_ / total, cpu_us * threads / total, all_ / total)
        for name, (all_, threads) in spent.items()
    ]
