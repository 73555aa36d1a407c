"""One instance, as far as it is decided: its state, what is to be done, and what may be asked of it now.

What it is for: :class:`Instance` takes requests of the control plane and reports of the driver
(:mod:`~crucible_emu.host.machine`), both of which go through the table in :mod:`~crucible_emu.host.states`, and says
with :meth:`Instance.take` what is to be done next.

What it guarantees: one thing is to be done at a time. What a later request asks for takes the place of what has not
begun. Every change that a client could see raises :attr:`Instance.generation` by one, so that whoever has seen
generation n waits for n + 1 and misses nothing but intermediate states.
"""

from __future__ import annotations

from crucible_emu.host import documents as d
from crucible_emu.host.components import InstanceSpec, spec_key
from crucible_emu.host.refusals import Forbidden, Gone, NoDisk, NoDiskToChange, NoInstance
from crucible_emu.host.spec import DiskPlan, disks_of, with_vcr
from crucible_emu.host.states import ALIVE, FINAL, REQUESTS, Doing, Event, InstanceState, step
from crucible_emu.volume.vcr import VolumeConstructionRequest


class Instance:
    """The instance that ``request`` describes. Raises :class:`~crucible_emu.host.refusals.BadSpec`."""

    def __init__(self, request: d.InstanceEnsureRequest) -> None:
        self.properties = request.properties
        self.init = request.init
        self.generation = 0
        self.problem: str | None = None
        """Why it failed."""
        self.spec: InstanceSpec | None = None
        """``None`` until the spec of a migrating instance has come."""
        self.plans: dict[str, DiskPlan] = {}
        self.released = False
        """Whether it holds nothing any more: neither disks nor sockets."""
        self._doing = Doing.PREPARE
        self._migration_in: d.InstanceMigrationStatus | None = None
        if isinstance(self.init, d.SpecInit):
            self.state = InstanceState.CREATING
            self.accept_spec(self.init.value.spec)
        else:
            self.state = InstanceState.MIGRATING
            self._migration_in = d.InstanceMigrationStatus(id=self.init.value.migration_id, state="Sync")

    # -- what happens -------------------------------------------------------------------------------------------------

    def request(self, wanted: d.InstanceStateRequested) -> None:
        """Run, Stop or Reboot is asked for. Raises :class:`Forbidden` where the state does not allow it."""
        if not self._apply(REQUESTS[wanted]):
            raise Forbidden(f"{wanted} is not possible: the instance is {self.state}")

    def happened(self, event: Event) -> None:
        """The driver reports ``event``; one that comes too late changes nothing."""
        self._apply(event)

    def broken(self, problem: str) -> None:
        """It cannot go on for this reason."""
        before = self.state
        self._apply(Event.BROKEN)
        if self.state is InstanceState.FAILED and before is not InstanceState.FAILED:
            self.problem = problem

    def accept_spec(self, spec: InstanceSpec) -> None:
        """This is what it is made of. Raises :class:`~crucible_emu.host.refusals.BadSpec`."""
        self.plans = {plan.id: plan for plan in disks_of(spec)}
        self.spec = spec

    def take(self) -> Doing:
        """What is to be done next; it will not be said again."""
        doing, self._doing = self._doing, Doing.NOTHING
        return doing

    @property
    def leaves(self) -> bool:
        """Whether what is under way is to be given up. *Liveness*."""
        return self._doing is Doing.LEAVE

    @property
    def over(self) -> bool:
        """Whether another instance may take its place: it is at its end and holds nothing."""
        return self.released and self.state in FINAL

    def was_released(self) -> None:
        """The driver has given back everything."""
        self.released = True
        self._apply(Event.RELEASED)

    def _apply(self, event: Event) -> bool:
        """Whether the table lists ``event``."""
        transition = step(self.state, event)
        if transition is None:
            return False
        if transition.doing is not Doing.NOTHING:
            self._doing = transition.doing
        if transition.after is not self.state:
            self._enter(transition.after)
        return True

    def _enter(self, state: InstanceState) -> None:
        if self._migration_in is not None and self.state is InstanceState.MIGRATING:
            arrived = state is InstanceState.RUNNING
            self._migration_in = self._migration_in.model_copy(update={"state": "Finish" if arrived else "Error"})
        self.state = state
        self.generation += 1

    # -- what may be asked --------------------------------------------------------------------------------------------

    def disk(self, disk_id: str) -> DiskPlan:
        """The disk whose backend has this key. Raises :class:`NoInstance` where there are no disks any more or yet,
        and :class:`NoDisk`."""
        if self.state not in ALIVE and self.state is not InstanceState.STOPPING:
            raise NoInstance(f"Server not initialized (no instance): it is {self.state}")
        if self.spec is None:
            raise NoInstance("Server not initialized (no instance): its spec is still on its way from the source")
        return self._plan(disk_id, NoDisk)

    def disk_to_change(self, disk_id: str, *, waited: bool) -> DiskPlan:
        """The disk whose VCR is to be replaced now (§6.3); ``waited``: the request came when the instance could still
        be changed. Raises :class:`Gone`, :class:`Forbidden`, :class:`NoDiskToChange`."""
        if self.state not in ALIVE:
            if waited:
                raise Gone(f"the instance is {self.state}: it ended while the request waited")
            raise Forbidden(f"no VCR can be replaced: the instance is {self.state}")
        return self._plan(disk_id, NoDiskToChange)

    def _plan(self, disk_id: str, refusal: type[NoDisk]) -> DiskPlan:
        try:
            return self.plans[spec_key(disk_id)]
        except (KeyError, ValueError):
            raise refusal(f"no Crucible backend {disk_id[:100]!r} in this instance") from None

    def replaced(self, plan: DiskPlan, request: VolumeConstructionRequest, vcr_json: str) -> None:
        """``request`` was accepted in place of that of ``plan``: the spec has it from now on."""
        assert self.spec is not None
        self.spec = with_vcr(self.spec, plan.id, vcr_json)
        self.plans[plan.id] = DiskPlan(plan.id, request, plan.read_only)

    # -- how it looks -------------------------------------------------------------------------------------------------

    def get(self) -> d.InstanceGetResponse:
        return d.InstanceGetResponse(instance=d.Instance(properties=self.properties, state=self.state))

    def get_spec(self) -> d.InstanceSpecGetResponse:
        found = d.SpecAwaited() if self.spec is None else d.SpecPresent(value=self.spec)
        return d.InstanceSpecGetResponse(properties=self.properties, spec=found, state=self.state)

    def seen(self) -> d.InstanceStateMonitorResponse:
        migration = d.InstanceMigrateStatusResponse(migration_in=self._migration_in)
        return d.InstanceStateMonitorResponse(gen=self.generation, state=self.state, migration=migration)
