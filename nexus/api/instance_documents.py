"""The documents of instances, by the names and members of ``nexus-external-2026081901.0.0.json``.

An instance here is what disks are attached to. What is asked for beyond that (processors, memory, addresses, groups,
keys, user data) is held to the document and let go; answers say 0 processors and 0 bytes of memory, for that is what
there is.
"""

from __future__ import annotations

import re
from datetime import datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, Field

from nexus.api.external_documents import DiskBackend
from nexus.api.members import ByteCount, Document, Identity, Name, NameOrId, Page, Words

HOSTNAME_LENGTH_MAX = 253
_HOSTNAME = re.compile(r"[a-zA-Z0-9]+[a-zA-Z0-9\-]*(?<!-)(\.[a-zA-Z0-9]+[a-zA-Z0-9\-]*(?<!-))*")


def _hostname(text: str) -> str:
    if not 0 < len(text) <= HOSTNAME_LENGTH_MAX or _HOSTNAME.fullmatch(text) is None:
        raise ValueError("a host name is of letters, digits and hyphens, in parts with dots between them")
    return text


Hostname = Annotated[str, AfterValidator(_hostname)]
Uint16 = Annotated[int, Field(ge=0, lt=2**16)]
IpVersion = Literal["v4", "v6"]

# -- disks ------------------------------------------------------------------------------------------------------------


class DiskToCreate(Document):
    """A disk that is made with the instance."""

    type: Literal["create"]
    name: Name
    description: Words
    size: ByteCount
    disk_backend: DiskBackend


class DiskToAttach(Document):
    """A disk that is there."""

    type: Literal["attach"]
    name: Name


InstanceDiskAttachment = Annotated[DiskToCreate | DiskToAttach, Field(discriminator="type")]


# -- what is checked and let go ---------------------------------------------------------------------------------------


class ExplicitPool(Document):
    """One pool of addresses."""

    type: Literal["explicit"]
    pool: NameOrId


class AnyPool(Document):
    """The usual pool of addresses."""

    type: Literal["auto"]
    ip_version: IpVersion | None = None


class EphemeralIp(Document):
    """An address for as long as the instance runs."""

    type: Literal["ephemeral"]
    pool_selector: Annotated[ExplicitPool | AnyPool, Field(discriminator="type")] = AnyPool(type="auto")


class FloatingIp(Document):
    """An address that has a name."""

    type: Literal["floating"]
    floating_ip: NameOrId


class MulticastGroupJoinSpec(Document):
    """A group that the instance listens to."""

    group: str
    ip_version: IpVersion | None = None
    source_ips: tuple[IPv4Address | IPv6Address, ...] | None = None


class AnyAddress(Document):
    """Whichever address is free."""

    type: Literal["auto"]


class ExplicitIpv4(Document):
    """This address."""

    type: Literal["explicit"]
    value: IPv4Address


class ExplicitIpv6(Document):
    """This address."""

    type: Literal["explicit"]
    value: IPv6Address


class PrivateIpv4StackCreate(Document):
    """An interface's IPv4."""

    ip: Annotated[AnyAddress | ExplicitIpv4, Field(discriminator="type")]
    transit_ips: tuple[IPv4Network, ...] = ()


class PrivateIpv6StackCreate(Document):
    """An interface's IPv6."""

    ip: Annotated[AnyAddress | ExplicitIpv6, Field(discriminator="type")]
    transit_ips: tuple[IPv6Network, ...] = ()


class BothStacks(Document):
    """An interface's IPv4 and IPv6."""

    v4: PrivateIpv4StackCreate
    v6: PrivateIpv6StackCreate


class Ipv4Stack(Document):
    """IPv4 alone."""

    type: Literal["v4"]
    value: PrivateIpv4StackCreate


class Ipv6Stack(Document):
    """IPv6 alone."""

    type: Literal["v6"]
    value: PrivateIpv6StackCreate


class DualStack(Document):
    """IPv4 and IPv6."""

    type: Literal["dual_stack"]
    value: BothStacks


class InstanceNetworkInterfaceCreate(Document):
    """A network interface."""

    name: Name
    description: Words
    vpc_name: Name
    subnet_name: Name
    ip_config: Annotated[Ipv4Stack | Ipv6Stack | DualStack, Field(discriminator="type")] | None = None


class InterfacesToCreate(Document):
    """These network interfaces."""

    type: Literal["create"]
    params: tuple[InstanceNetworkInterfaceCreate, ...]


class UsualInterfaces(Document):
    """What every instance has, or nothing."""

    type: Literal["default_ipv4", "default_ipv6", "default_dual_stack", "none"]


NetworkInterfaces = Annotated[InterfacesToCreate | UsualInterfaces, Field(discriminator="type")]
InstanceAutoRestartPolicy = Literal["never", "best_effort"]
InstanceCpuPlatform = Literal["amd_milan", "amd_turin", "amd_turin_v2"]


# -- instances --------------------------------------------------------------------------------------------------------


class InstanceCreate(Document):
    """An instance to be made, with its disks."""

    name: Name
    description: Words
    hostname: Hostname
    memory: ByteCount
    ncpus: Uint16
    boot_disk: InstanceDiskAttachment | None = None
    disks: tuple[InstanceDiskAttachment, ...] = ()
    start: bool = True
    anti_affinity_groups: tuple[NameOrId, ...] = ()
    auto_restart_policy: InstanceAutoRestartPolicy | None = None
    cpu_platform: InstanceCpuPlatform | None = None
    enable_jumbo_frames: bool = False
    external_ips: tuple[Annotated[EphemeralIp | FloatingIp, Field(discriminator="type")], ...] = ()
    multicast_groups: tuple[MulticastGroupJoinSpec, ...] = ()
    network_interfaces: NetworkInterfaces = UsualInterfaces(type="default_dual_stack")
    ssh_public_keys: tuple[NameOrId, ...] | None = None
    user_data: str = ""


class Instance(Identity):
    """An instance."""

    project_id: UUID
    run_state: Literal[
        "creating",
        "starting",
        "running",
        "stopping",
        "stopped",
        "rebooting",
        "migrating",
        "repairing",
        "failed",
        "destroyed",
    ]
    time_run_state_updated: datetime
    hostname: str
    memory: ByteCount
    ncpus: Uint16
    auto_restart_enabled: bool
    auto_restart_policy: InstanceAutoRestartPolicy | None = None
    auto_restart_cooldown_expiration: datetime | None = None
    time_last_auto_restarted: datetime | None = None
    boot_disk_id: UUID | None = None
    cpu_platform: InstanceCpuPlatform | None = None
    enable_jumbo_frames: bool


class InstanceResultsPage(Page[Instance]):
    """Some instances."""
