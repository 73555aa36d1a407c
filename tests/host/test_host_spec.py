"""Which disks a spec asks for, what a spec may hold, and what becomes of it by migration and replacement. No I/O."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest
from host_rig import BLOCK, backend, properties, spec
from pydantic import TypeAdapter, ValidationError

from crucible_emu.host import documents as d
from crucible_emu.host.components import InstanceSpec
from crucible_emu.host.refusals import BadSpec, NotPossible
from crucible_emu.host.spec import DISKS_MAX, DiskPlan, disks_of, migrated, read_replacement, with_vcr
from crucible_emu.volume.vcr import RegionRequest, VolumeRequest

SECRET = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlYzE="
PATH = {"bus": 0, "device": 16, "function": 0}


def region(gen: int = 1, first: str = "[::1]:1", **opts: Any) -> RegionRequest:
    members = {"id": str(UUID(int=7)), "target": [first, "[::1]:2", "[::1]:3"], "key": SECRET} | opts
    document = {"type": "region", "block_size": BLOCK, "blocks_per_extent": 8, "extent_count": 4, "gen": gen}
    return RegionRequest.model_validate(document | {"opts": members})


def read(document: dict[str, Any]) -> InstanceSpec:
    return InstanceSpec.model_validate_json(json.dumps(document), strict=True)


def replacement(request: RegionRequest, key: str = "disk") -> dict[str, d.ReplacementComponent]:
    adapter: TypeAdapter[dict[str, d.ReplacementComponent]] = TypeAdapter(dict[str, d.ReplacementComponent])
    document = {key: {"component": "CrucibleStorageBackend", "spec": backend(request)["component"]}}
    return adapter.validate_python(document)


KINDS: dict[str, dict[str, Any]] = {
    "virtio_disk": {"backend_id": "disk", "pci_path": PATH},
    "nvme_disk": {"backend_id": "disk", "pci_path": PATH, "serial_number": list(range(20))},
    "virtio_nic": {"backend_id": "net", "interface_id": str(UUID(int=3)), "pci_path": PATH},
    "serial_port": {"num": "com1"},
    "pci_pci_bridge": {"downstream_bus": 1, "pci_path": PATH},
    "qemu_pvpanic": {"enable_isa": True},
    "boot_settings": {"order": [{"id": "disk"}]},
    "virtio_socket": {"guest_cid": 3, "pci_path": PATH},
    "soft_npu_pci_port": {"pci_path": PATH},
    "soft_npu_port": {"backend_id": "net", "link_name": "a link"},
    "soft_npu_p9": {"pci_path": PATH},
    "p9fs": {"chunk_size": 8192, "pci_path": PATH, "source": "here", "target": "there"},
    "migration_failure_injector": {"fail_exports": 0, "fail_imports": 1},
    "file_storage_backend": {"block_size": 512, "path": "a file", "readonly": False},
    "blob_storage_backend": {"base64": "", "readonly": True},
    "virtio_network_backend": {"vnic_name": "vnic0"},
    "dlpi_network_backend": {"vnic_name": "vnic1"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_component_is_kept_as_it_came_and_knows_its_members(kind: str) -> None:
    document = spec(disk=backend(region()), one={"type": kind, "component": KINDS[kind]})
    assert d.written(read(document)) == document
    assert len(disks_of(read(document))) == 1
    document["components"]["one"]["component"] = KINDS[kind] | {"unheard_of": 1}
    with pytest.raises(ValidationError, match="unheard_of"):
        read(document)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("board", "cpus"), "2"),
        (("board", "cpus"), 256),
        (("board", "more"), 1),
        (("board", "chipset", "type"), "q35"),
        (("components", "disk", "component", "readonly"), "yes"),
        (("components", "disk", "type"), "another_backend"),
        (("components", ""), {"type": "serial_port", "component": {"num": "com1"}}),
    ],
)
def test_what_a_spec_cannot_mean_is_refused(place: tuple[str, ...], value: Any) -> None:
    document = spec(disk=backend(region()))
    where: Any = document
    for name in place[:-1]:
        where = where[name]
    where[place[-1]] = value
    with pytest.raises(ValidationError):
        read(document)


def test_a_board_with_everything_comes_back() -> None:
    document = spec()
    leaf = {"leaf": 1, "eax": 0, "ebx": 1, "ecx": 2, "edx": 3}
    document["board"]["cpuid"] = {"entries": [leaf, leaf | {"subleaf": 1}], "vendor": "amd"}
    document["board"]["guest_hv_interface"] = {"type": "hyper_v", "value": {"features": ["reference_tsc"]}}
    document["smbios"] = {"manufacturer": "m", "product_name": "p", "serial_number": "s", "version": 1}
    assert d.written(read(document)) == document


def test_unknown_members_are_ignored_outside_of_components() -> None:
    assert read(spec() | {"newer": 1}).components == {}
    whole = {"properties": properties() | {"newer": 1}, "init": {"method": "Spec", "value": {"spec": spec()}}}
    assert d.InstanceEnsureRequest.model_validate_json(json.dumps(whole), strict=True).properties.name == "an instance"


def test_a_key_that_is_a_uuid_is_one_key_in_any_spelling() -> None:
    name = str(UUID(int=0xABC))
    found = read(spec(**{name.upper(): backend(region())}))
    assert [plan.id for plan in disks_of(found)] == [name]


def test_a_disk_without_its_backend_is_refused() -> None:
    device = {"type": "virtio_disk", "component": {"backend_id": "gone", "pci_path": PATH}}
    with pytest.raises(BadSpec, match="the disk 'device' names the backend 'gone': there is none"):
        disks_of(read(spec(device=device)))


def test_a_bad_vcr_is_named_and_its_key_is_not_shown() -> None:
    text = json.dumps(region().model_dump(mode="json") | {"block_size": 5})
    with pytest.raises(BadSpec, match="request_json of the backend 'disk'") as refused:
        disks_of(read(spec(disk=backend(text))))
    assert SECRET not in str(refused.value)
    with pytest.raises(NotPossible, match="the VCR for the disk 'disk' is not JSON"):
        read_replacement("disk", "{")


def test_secrets_do_not_show() -> None:
    found = read(spec(disk=backend(region())))
    assert SECRET not in repr(found) and SECRET not in repr(disks_of(found))
    assert SECRET not in repr(d.InstanceVCRReplace(vcr_json=SECRET))


def test_there_is_a_bound_to_the_disks() -> None:
    with pytest.raises(BadSpec, match=f"at most {DISKS_MAX}"):
        disks_of(read(spec(**{f"disk{number}": backend(region()) for number in range(DISKS_MAX + 1)})))


@pytest.mark.parametrize(
    ("key", "name"), [("a disk", "a%20disk"), ("../up", "%2E.%2Fup"), (".hidden", "%2Ehidden"), ("ü", "%C3%BC")]
)
def test_no_key_leads_out_of_the_directory(key: str, name: str) -> None:
    assert DiskPlan(key, region(), False).file_name == name


# -- migration and replacement ----------------------------------------------------------------------------------------


def test_a_migration_takes_the_higher_generation_and_keeps_the_rest() -> None:
    source = read(
        spec(disk=backend(region(1), readonly=False), com={"type": "serial_port", "component": {"num": "com1"}})
    )
    target = migrated(source, replacement(region(2)))
    (plan,) = disks_of(target)
    assert isinstance(plan.request, RegionRequest) and plan.request.gen == 2
    assert list(target.components) == ["disk", "com"]
    assert disks_of(source)[0].request == region(1)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (region(2, first="[::1]:9"), "targets are different"),
        (region(1), "no difference"),
        (region(0), "generation too low"),
        (region(2, id=str(UUID(int=8))), "id mismatch"),
        (region(2, key=None), "key mismatch"),
    ],
)
def test_a_migration_to_another_volume_is_refused(request_: RegionRequest, reason: str) -> None:
    source = read(spec(disk=backend(region(1))))
    with pytest.raises(BadSpec, match=f"'disk' is not that of the source: .*{reason}") as refused:
        migrated(source, replacement(request_))
    assert SECRET not in str(refused.value)


def test_what_the_source_does_not_have_is_not_replaced() -> None:
    source = read(spec(disk={"type": "file_storage_backend", "component": KINDS["file_storage_backend"]}))
    for key in ("disk", "other"):
        with pytest.raises(BadSpec, match=f"the component '{key}' is to be replaced by a CrucibleStorageBackend"):
            migrated(source, replacement(region(2), key))


def test_network_and_injector_may_be_replaced() -> None:
    adapter: TypeAdapter[dict[str, d.ReplacementComponent]] = TypeAdapter(dict[str, d.ReplacementComponent])
    names = {"net": "virtio_network_backend", "injector": "migration_failure_injector"}
    source = read(spec(**{key: {"type": kind, "component": KINDS[kind]} for key, kind in names.items()}))
    changes = {
        "net": {"component": "VirtioNetworkBackend", "spec": {"vnic_name": "other"}},
        "injector": {"component": "MigrationFailureInjector", "spec": {"fail_exports": 5, "fail_imports": 6}},
    }
    found = d.written(migrated(source, adapter.validate_python(changes)))["components"]
    assert {key: found[key]["component"] for key in found} == {key: each["spec"] for key, each in changes.items()}


def test_an_accepted_vcr_is_in_the_spec() -> None:
    source = read(spec(disk=backend(region(1), readonly=True)))
    volume = VolumeRequest(type="volume", id=UUID(int=1), block_size=BLOCK, sub_volumes=(region(5),))
    found = with_vcr(source, "disk", volume.model_dump_json())
    (plan,) = disks_of(found)
    assert isinstance(plan.request, VolumeRequest) and plan.read_only
