"""Whatever guests do around a live repair: what touches the same blocks on a replica is done there in its order.

Random jobs before, during and after a repair, some over extent borders. A Downstairs may run jobs in any order that
the dependencies it was told allow, so for each replica, every job must wait for all earlier ones on its blocks that the
replica was sent, by itself or through others.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st
from upstairs_rig import Rig

from crucible_emu.geometry import RegionDefinition
from crucible_emu.upstairs import actions
from crucible_emu.upstairs.jobs import Job
from crucible_emu.upstairs.rules import CLIENTS, WRITES, JobKind
from crucible_emu.wire import messages as m

EXTENT, EXTENTS = 3, 4
BLOCKS = EXTENT * EXTENTS
TARGET = 1


@dataclass
class Sent:
    """One job as one replica was sent it. ``done``: what the replica had done before."""

    job_id: int
    blocks: range
    changes: bool
    dependencies: set[int]
    done: set[int]


class Recorder(Rig):
    """Keeps what each replica was sent; answers nothing but the steps of the repair."""

    def __init__(self) -> None:
        super().__init__(RegionDefinition(512, EXTENT, EXTENTS, UUID(int=9)))
        self.core.extents_ahead = 2
        self.sent: list[list[Sent]] = [[], [], []]

    def deliver(self, action: actions.Send) -> None:
        item, client = action.item, action.client
        done = set(self.replicas[client].completed)
        if isinstance(item, Job):
            first = item.starts[0]
            blocks = range(first, first + item.lengths[0]) if item.lengths[0] else range(BLOCKS)
            wanted = set(self.dependencies(item, client))
            self.sent[client].append(Sent(item.first_id, blocks, item.kind is not JobKind.READ, wanted, done))
        elif isinstance(item, m.JobRequest):
            extent_id = getattr(item, "extent_id", None)
            blocks = range(BLOCKS) if isinstance(item, m.Flush) else range(0)
            if extent_id is not None:
                blocks = range(extent_id * EXTENT, (extent_id + 1) * EXTENT)
            wanted = set(item.dependencies)
            if isinstance(item, m.ExtentLiveReopen):  # sent first of all; the two before it wait for each other
                wanted |= {item.job_id - 2, item.job_id - 3}
            self.sent[client].append(Sent(item.job_id, blocks, True, wanted, done))
        super().deliver(action)

    def step(self) -> None:
        """Every replica does the oldest step of the repair that it was sent and may do."""
        repair = self.core.repair
        for client in CLIENTS:
            replica = self.replicas[client]
            steps = [message for message in replica.live if not isinstance(message, m.Flush)]
            closing = [] if repair is None else [extent.ids[0] for extent in repair.under_way]
            for message in sorted(steps, key=lambda message: message.job_id)[:1]:
                if repair is None or message.job_id - 1 in replica.completed or message.job_id in closing:
                    replica.live.remove(message)
                    replica.lived.append(message)
                    replica.completed.add(message.job_id)
                    self._answer_live(client, message, None)

    def submit(self, kind: JobKind, start: int, length: int) -> None:
        """A write, cut as the guest's side cuts it while a repair runs; or a read of a replica that stays."""
        if kind is JobKind.READ:
            self.read(object(), start, client=start % 2 * 2)
            return
        spans = [(start, length)]
        if self.core.repair is not None:
            near, beyond = self.core.repair.split(spans)
            spans = near + beyond
        for first, count in spans:
            self.core.write(self.core.new_job(kind, [first], [count], count * 512, None))
            self.run()

    def check_order(self, client: int) -> None:
        """Each job waits, directly or not, for every earlier one that it must not pass."""
        before: dict[int, set[int]] = {}
        for sent in sorted(self.sent[client], key=lambda sent: sent.job_id):
            before[sent.job_id] = set(sent.dependencies).union(*(before.get(each, set()) for each in sent.dependencies))
        for later in self.sent[client]:
            for earlier in self.sent[client]:
                if earlier.job_id >= later.job_id or earlier.job_id in later.done:
                    continue
                touching = max(earlier.blocks.start, later.blocks.start) < min(earlier.blocks.stop, later.blocks.stop)
                if touching and (earlier.changes or later.changes):
                    assert earlier.job_id in before[later.job_id], f"replica {client}: {later} passes {earlier}"


operations = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from([*WRITES, JobKind.READ]), st.integers(0, BLOCKS - 1), st.sampled_from([1, 1, 2, 3, 5, 9])
        ),
        st.sampled_from(["flush", "step", "step", "step"]),
    ),
    max_size=30,
)


@given(before=operations, during=operations)
def test_jobs_on_the_same_blocks_keep_their_order_on_every_replica(before: list[object], during: list[object]) -> None:
    rig = Recorder().active()
    assert isinstance(rig, Recorder)
    for replica in rig.replicas:
        replica.answers_repairs = False
    for number, operation in enumerate([*before, "begin", *during]):
        match operation:
            case (JobKind() as kind, int(start), int(length)):
                rig.submit(kind, start, min(length, BLOCKS - start))
            case "flush":
                rig.flush(number)
            case "step":
                rig.step()
            case "begin":
                rig.core.can_replay = False
                rig.drop(TARGET)
                rig.sent[TARGET].clear()
                rig.reconnect()
                assert rig.core.repair is not None
    for client in CLIENTS:
        rig.check_order(client)
        under_way = rig.core.repair.under_way if rig.core.repair else []
        known = {sent.job_id for sent in rig.sent[client]}.union(*(extent.ids for extent in under_way))
        for sent in rig.sent[client]:
            assert sent.dependencies <= known, f"replica {client} waits for what it was never sent: {sent}"
