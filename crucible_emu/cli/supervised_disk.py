"""The disk that supervised Downstairs make together: its volume construction request.

It stands by itself because the models of that document take 0.14 s to import, which every Downstairs would pay at its
start if the command's module did.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from crucible_emu.cli.new_paths import new_file
from crucible_emu.errors import UsageError
from crucible_emu.geometry import RegionDefinition
from crucible_emu.supervisor import layout
from crucible_emu.volume import vcr

_DISK_UUID_PREFIX = "12345678-0000-0000-0001-"


@dataclass(slots=True)
class Disk:
    """What the regions are together, and the volume construction request for it."""

    definitions: list[RegionDefinition]
    places: list[layout.Place]
    address: str
    read_only: bool
    key: str | None
    generation: int = 0

    def __post_init__(self) -> None:
        self.generation = layout.newest_generation(self.places)

    @property
    def sets(self) -> int:
        return len(self.places) // layout.REPLICAS

    def request(self) -> vcr.VolumeRequest | None:
        """The document; ``None`` where there are fewer than three regions. Surplus regions are spares. Each call gives
        a generation above those before it, so that everybody who asks can activate."""
        if not self.sets:
            return None
        self.generation += 1
        first = self.definitions[0]
        region_sets = [
            vcr.RegionRequest(
                type="region",
                block_size=first.block_size,
                blocks_per_extent=first.blocks_per_extent,
                extent_count=first.extent_count,
                opts=self._opts(self.places[number * layout.REPLICAS :][: layout.REPLICAS]),
                gen=self.generation,
            )
            for number in range(self.sets)
        ]
        return vcr.VolumeRequest(
            type="volume",
            id=disk_uuid(self.places[0].port),
            block_size=first.block_size,
            sub_volumes=tuple(region_sets),
            read_only_parent=None,
        )

    def _opts(self, replicas: list[layout.Place]) -> vcr.CrucibleOpts:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return vcr.CrucibleOpts.model_validate(
            {
                "id": disk_uuid(replicas[0].port),
                "target": tuple(f"{host}:{place.port}" for place in replicas),
                "key": self.key,
                "read_only": self.read_only,
            }
        )


def disk_uuid(port: int) -> UUID:
    """The id of the disk whose first Downstairs listens at ``port``; the same for the same regions every time."""
    return UUID(f"{_DISK_UUID_PREFIX}{port:012d}")


def without_key(request: vcr.VolumeRequest) -> vcr.VolumeRequest:
    """The document for whoever can reach the control API: on one machine that is every user."""
    regions = [each for each in request.sub_volumes if isinstance(each, vcr.RegionRequest)]
    bare = [each.model_copy(update={"opts": each.opts.model_copy(update={"key": None})}) for each in regions]
    return request.model_copy(update={"sub_volumes": tuple(bare)})


def check_address(text: str) -> None:
    """Whether ``text`` is ip:port, port 0 allowed. Raises :class:`UsageError`."""
    port_any = text.removesuffix(":0") + ":1" if text.endswith(":0") else text
    try:
        vcr.parse_address(port_any)
    except ValueError as error:
        raise UsageError(f"--control: {error}") from None


def write_request(path: Path, request: vcr.VolumeRequest) -> None:
    """Write the new file, or write it anew; only its owner may read it, because it may hold a key."""
    with new_file(path, overwrite=True) as growing:
        descriptor = os.open(growing, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(vcr.dumps(request))
