"""VCRs of any shape, drawn: what the walks have to work on."""

from __future__ import annotations

from uuid import UUID

from hypothesis import strategies as st

from crucible_emu.volume.vcr import FileRequest, VolumeConstructionRequest
from nexus.volumes.recorded import Address, RecordedOpts, RecordedRegion, RecordedVolume

KEY = "tCw7zw0hAsPuxMOTWwnPEFYjBK9qJRtYyGdEXKEnrg0="

ADDRESSES = st.builds(Address.of, st.sampled_from(["fd00::1", "fd00::2", "fd00::3"]), st.integers(1, 65535))
IDS = st.uuids(version=4)


def region(owner: UUID, targets: list[Address], *, read_only: bool, gen: int = 1) -> RecordedRegion:
    """One region set with a key."""
    opts = RecordedOpts(id=owner, target=tuple(map(str, targets)), read_only=read_only, key=KEY)
    return RecordedRegion(type="region", block_size=512, blocks_per_extent=8, extent_count=2, gen=gen, opts=opts)


def volume(
    owner: UUID, *parts: VolumeConstructionRequest, parent: VolumeConstructionRequest | None = None
) -> RecordedVolume:
    """Sub-volumes over a parent."""
    return RecordedVolume(type="volume", id=owner, block_size=512, sub_volumes=parts, read_only_parent=parent)


@st.composite
def requests(draw: st.DrawFn, *, read_only: bool | None = None, depth: int = 3) -> RecordedVolume:
    """A volume whose targets are all different; below a parent everything is read-only. ``read_only``: of the sets of
    the sub-volumes, ``None`` for either."""
    addresses = iter(draw(st.lists(ADDRESSES, min_size=36, max_size=36, unique=True)))

    def build(levels: int, only: bool | None) -> RecordedVolume:
        parts: list[VolumeConstructionRequest] = []
        for kind in draw(st.lists(st.sampled_from(["region", "region", "file", "volume"]), max_size=2)):
            if kind == "region":
                targets = [next(addresses) for _ in range(draw(st.sampled_from([0, 1, 3])))]
                chosen = draw(st.booleans()) if only is None else only
                parts.append(region(draw(IDS), targets, read_only=chosen, gen=draw(st.integers(0, 9))))
            elif kind == "file":
                parts.append(FileRequest(type="file", id=draw(IDS), block_size=512, path="image.raw"))
            elif levels > 1:
                parts.append(build(1, only))
        parent = build(levels - 1, True) if levels > 1 and draw(st.booleans()) else None
        return volume(draw(IDS), *parts, parent=parent)

    return build(depth, read_only)
