"""From an instance spec to the disks that it asks for, and what a spec becomes by a migration or a replacement.

What it is for: :func:`disks_of` finds the Crucible backends and reads their volume construction requests (VCRs);
:func:`migrated` puts a target's backends in place of the source's; :func:`with_vcr` remembers a VCR that was accepted,
so that the next one is compared with it and a migration hands it on (apis-and-tools.md §6.2, §6.3).

Why a migration is safe: a backend may be replaced by one whose VCR differs in nothing but higher generations. So the
target reaches the same bytes, and the Downstairs turn the source away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from crucible_emu.errors import ReplaceRequestInvalid, UsageError
from crucible_emu.host.components import (
    BlobComponent,
    Component,
    CrucibleComponent,
    CrucibleStorageBackend,
    FileComponent,
    InstanceSpec,
    MigrationFailureInjectorComponent,
    NvmeDiskComponent,
    VirtioDiskComponent,
    VirtioNetworkComponent,
)
from crucible_emu.host.documents import (
    CrucibleReplacement,
    InjectorReplacement,
    NetworkReplacement,
    ReplacementComponent,
)
from crucible_emu.host.refusals import BadSpec, NotPossible
from crucible_emu.volume import comparison, vcr
from crucible_emu.volume.vcr import VolumeConstructionRequest

DISKS_MAX = 64
"""More than any machine has slots for."""

STORAGE = (CrucibleComponent, FileComponent, BlobComponent)
DISK_DEVICES = (VirtioDiskComponent, NvmeDiskComponent)
REPLACEABLE: dict[type, type] = {
    CrucibleReplacement: CrucibleComponent,
    NetworkReplacement: VirtioNetworkComponent,
    InjectorReplacement: MigrationFailureInjectorComponent,
}
"""What may take the place of what in a migration."""


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """A disk of an instance. ``id``: the key of its backend."""

    id: str
    request: VolumeConstructionRequest
    read_only: bool

    @property
    def file_name(self) -> str:
        """The id as a file name: what may not stand there is written as in a URL."""
        name = quote(self.id, safe="")
        return f"%2E{name[1:]}" if name.startswith(".") else name


def disks_of(spec: InstanceSpec) -> list[DiskPlan]:
    """The Crucible backends of ``spec``, in its order. Raises :class:`BadSpec`."""
    for key, component in spec.components.items():
        if isinstance(component, DISK_DEVICES):
            backend = spec.components.get(component.component.backend_id)
            if not isinstance(backend, STORAGE):
                raise BadSpec(f"the disk {key!r} names the backend {component.component.backend_id!r}: there is none")
    found = [
        DiskPlan(key, _read(key, component.component), component.component.readonly)
        for key, component in spec.components.items()
        if isinstance(component, CrucibleComponent)
    ]
    if len(found) > DISKS_MAX:
        raise BadSpec(f"the spec has {len(found)} Crucible backends: at most {DISKS_MAX} are taken")
    return found


def _read(key: str, backend: CrucibleStorageBackend) -> VolumeConstructionRequest:
    try:
        return vcr.parse(backend.request_json, f"the request_json of the backend {key!r}")
    except UsageError as error:
        raise BadSpec(str(error)) from None


def read_replacement(disk_id: str, vcr_json: str) -> VolumeConstructionRequest:
    """The VCR that is to take the place of another. Raises :class:`NotPossible`."""
    try:
        return vcr.parse(vcr_json, f"the VCR for the disk {disk_id!r}")
    except UsageError as error:
        raise NotPossible(str(error)) from None


def with_vcr(spec: InstanceSpec, disk_id: str, vcr_json: str) -> InstanceSpec:
    """``spec`` with another VCR for the Crucible backend ``disk_id``, which is there."""
    component = spec.components[disk_id]
    assert isinstance(component, CrucibleComponent)
    backend = CrucibleStorageBackend(readonly=component.component.readonly, request_json=vcr_json)
    return _with(spec, disk_id, CrucibleComponent(type=component.type, component=backend))


def check_replacements(replacements: Mapping[str, ReplacementComponent]) -> None:
    """Refuse what can be known to be wrong before the source is asked. Raises :class:`BadSpec`."""
    for key, replacement in replacements.items():
        if isinstance(replacement, CrucibleReplacement):
            _read(key, replacement.spec)


def migrated(source: InstanceSpec, replacements: Mapping[str, ReplacementComponent]) -> InstanceSpec:
    """The spec of a migration's target. Raises :class:`BadSpec`."""
    spec = source
    for key, replacement in replacements.items():
        found = source.components.get(key)
        if type(found) is not REPLACEABLE[type(replacement)]:
            raise BadSpec(f"the component {key!r} is to be replaced by a {replacement.component}: the source has none")
        spec = _with(spec, key, _component(replacement))
        if isinstance(found, CrucibleComponent) and isinstance(replacement, CrucibleReplacement):
            try:
                comparison.compare_vcr_for_migration(_read(key, found.component), _read(key, replacement.spec))
            except ReplaceRequestInvalid as error:
                raise BadSpec(f"the backend {key!r} is not that of the source: {error.detail}") from None
    return spec


def _component(replacement: ReplacementComponent) -> Component:
    match replacement:
        case CrucibleReplacement():
            return CrucibleComponent(type="crucible_storage_backend", component=replacement.spec)
        case NetworkReplacement():
            return VirtioNetworkComponent(type="virtio_network_backend", component=replacement.spec)
        case InjectorReplacement():
            return MigrationFailureInjectorComponent(type="migration_failure_injector", component=replacement.spec)


def _with(spec: InstanceSpec, key: str, component: Component) -> InstanceSpec:
    return spec.model_copy(update={"components": {**spec.components, key: component}})
