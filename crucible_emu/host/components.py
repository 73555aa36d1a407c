"""An instance spec: the board of a virtual machine and its components by key (apis-and-tools.md §6.2).

What it is for: the models read and write the ``InstanceSpec`` of the Propolis document. Only the Crucible storage
backends mean something here; everything else that a control plane puts into a spec is checked, kept and given back.

What it guarantees: unknown members inside the board and inside a component are refused, as the real types refuse them;
numbers are numbers and not texts that look like them. A volume construction request carries disk keys, so it never
shows in a ``repr``. A key that is a UUID is the same key in any spelling.
"""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool

KEY_CHARACTERS_MAX = 200
COMPONENTS_MAX = 256


def spec_key(text: str) -> str:
    """The key, in one spelling. Raises :class:`ValueError`."""
    if not 0 < len(text) <= KEY_CHARACTERS_MAX:
        raise ValueError(f"a component's key has 1 to {KEY_CHARACTERS_MAX} characters")
    try:
        return str(UUID(text)) if len(text) == 36 else text
    except ValueError:
        return text


SpecKey = Annotated[str, AfterValidator(spec_key)]
U8 = Annotated[int, Field(strict=True, ge=0, lt=1 << 8)]
U32 = Annotated[int, Field(strict=True, ge=0, lt=1 << 32)]
U64 = Annotated[int, Field(strict=True, ge=0, lt=1 << 64)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Open(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class PciPath(_Open):
    """Bus, device and function."""

    bus: U8
    device: U8
    function: U8


# -- backends ---------------------------------------------------------------------------------------------------------


class CrucibleStorageBackend(_Strict):
    """A Crucible volume. ``request_json``: its volume construction request, as a text."""

    readonly: StrictBool
    request_json: Annotated[str, Field(repr=False)]


class FileStorageBackend(_Strict):
    block_size: U32
    path: str
    readonly: StrictBool
    workers: Annotated[int, Field(strict=True, ge=1)] | None = None


class BlobStorageBackend(_Strict):
    base64: Annotated[str, Field(repr=False)]
    readonly: StrictBool


class VirtioNetworkBackend(_Strict):
    vnic_name: str


class DlpiNetworkBackend(_Strict):
    vnic_name: str


# -- devices ----------------------------------------------------------------------------------------------------------


class VirtioDisk(_Strict):
    backend_id: SpecKey
    pci_path: PciPath


class NvmeDisk(_Strict):
    backend_id: SpecKey
    pci_path: PciPath
    serial_number: Annotated[tuple[U8, ...], Field(min_length=20, max_length=20)]


class VirtioNic(_Strict):
    backend_id: SpecKey
    interface_id: UUID
    pci_path: PciPath


class SerialPort(_Strict):
    num: Literal["com1", "com2", "com3", "com4"]


class PciPciBridge(_Strict):
    downstream_bus: U8
    pci_path: PciPath


class QemuPvpanic(_Strict):
    enable_isa: StrictBool


class BootOrderEntry(_Open):
    id: SpecKey


class BootSettings(_Strict):
    order: tuple[BootOrderEntry, ...]


class VirtioSocket(_Strict):
    guest_cid: U64
    pci_path: PciPath


class SoftNpuPciPort(_Strict):
    pci_path: PciPath


class SoftNpuPort(_Strict):
    backend_id: SpecKey
    link_name: str


class SoftNpuP9(_Strict):
    pci_path: PciPath


class P9fs(_Strict):
    chunk_size: U32
    pci_path: PciPath
    source: str
    target: str


class MigrationFailureInjector(_Strict):
    fail_exports: U32
    fail_imports: U32


# -- a component under its tag ----------------------------------------------------------------------------------------


class CrucibleComponent(_Strict):
    type: Literal["crucible_storage_backend"]
    component: CrucibleStorageBackend


class FileComponent(_Strict):
    type: Literal["file_storage_backend"]
    component: FileStorageBackend


class BlobComponent(_Strict):
    type: Literal["blob_storage_backend"]
    component: BlobStorageBackend


class VirtioNetworkComponent(_Strict):
    type: Literal["virtio_network_backend"]
    component: VirtioNetworkBackend


class DlpiNetworkComponent(_Strict):
    type: Literal["dlpi_network_backend"]
    component: DlpiNetworkBackend


class VirtioDiskComponent(_Strict):
    type: Literal["virtio_disk"]
    component: VirtioDisk


class NvmeDiskComponent(_Strict):
    type: Literal["nvme_disk"]
    component: NvmeDisk


class VirtioNicComponent(_Strict):
    type: Literal["virtio_nic"]
    component: VirtioNic


class SerialPortComponent(_Strict):
    type: Literal["serial_port"]
    component: SerialPort


class PciPciBridgeComponent(_Strict):
    type: Literal["pci_pci_bridge"]
    component: PciPciBridge


class QemuPvpanicComponent(_Strict):
    type: Literal["qemu_pvpanic"]
    component: QemuPvpanic


class BootSettingsComponent(_Strict):
    type: Literal["boot_settings"]
    component: BootSettings


class VirtioSocketComponent(_Strict):
    type: Literal["virtio_socket"]
    component: VirtioSocket


class SoftNpuPciPortComponent(_Strict):
    type: Literal["soft_npu_pci_port"]
    component: SoftNpuPciPort


class SoftNpuPortComponent(_Strict):
    type: Literal["soft_npu_port"]
    component: SoftNpuPort


class SoftNpuP9Component(_Strict):
    type: Literal["soft_npu_p9"]
    component: SoftNpuP9


class P9fsComponent(_Strict):
    type: Literal["p9fs"]
    component: P9fs


class MigrationFailureInjectorComponent(_Strict):
    type: Literal["migration_failure_injector"]
    component: MigrationFailureInjector


Component = Annotated[
    CrucibleComponent
    | FileComponent
    | BlobComponent
    | VirtioNetworkComponent
    | DlpiNetworkComponent
    | VirtioDiskComponent
    | NvmeDiskComponent
    | VirtioNicComponent
    | SerialPortComponent
    | PciPciBridgeComponent
    | QemuPvpanicComponent
    | BootSettingsComponent
    | VirtioSocketComponent
    | SoftNpuPciPortComponent
    | SoftNpuPortComponent
    | SoftNpuP9Component
    | P9fsComponent
    | MigrationFailureInjectorComponent,
    Field(discriminator="type"),
]

# -- the machine ------------------------------------------------------------------------------------------------------


class I440Fx(_Strict):
    enable_pcie: StrictBool


class Chipset(_Strict):
    type: Literal["i440_fx"]
    value: I440Fx


class CpuidEntry(_Strict):
    leaf: U32
    subleaf: U32 | None = None
    eax: U32
    ebx: U32
    ecx: U32
    edx: U32


class Cpuid(_Strict):
    entries: tuple[CpuidEntry, ...]
    vendor: Literal["amd", "intel"]


class Bhyve(_Strict):
    type: Literal["bhyve"]


class HyperVFeatures(_Strict):
    features: tuple[Literal["reference_tsc"], ...]


class HyperV(_Strict):
    type: Literal["hyper_v"]
    value: HyperVFeatures


class Board(_Strict):
    """A machine's board; nothing of it is emulated."""

    cpus: U8
    memory_mb: U64
    chipset: Chipset
    guest_hv_interface: Annotated[Bhyve | HyperV, Field(discriminator="type")] | None = None
    cpuid: Cpuid | None = None


class SmbiosType1Input(_Strict):
    manufacturer: str
    product_name: str
    serial_number: str
    version: U64


class InstanceSpec(_Open):
    """What an instance is made of."""

    board: Board
    components: Annotated[dict[SpecKey, Component], Field(max_length=COMPONENTS_MAX)]
    smbios: SmbiosType1Input | None = None
