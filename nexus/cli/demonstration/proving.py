"""Evidence about what survives: digests through Nexus, copies as agents know them.

Three witnesses that do not know of each other: the guest reads through the Upstairs of its host; Nexus reads through
one in a pantry, and compares the digests that the agents of all members tell of their extents; and each agent says what
it holds.
"""

from __future__ import annotations

from collections.abc import Iterator

from nexus.api.emulator_documents import RegionNode, SourceNode, TreeNode, VolumeTree
from nexus.cli.demonstration.verdict import COPIES, Survivor
from nexus.cli.session import Session

CREATED, IN_SERVICE = "created", "in_service"


async def survivor(nexus: Session, name: str, kind: str, identity: str, expected: str, read: str | None) -> Survivor:
    """The disk or image, which nobody uses just now, with what is to be said for it."""
    tree = await nexus.emulator.volume_view(identity)
    report = await nexus.emulator.volume_verify(identity)
    return Survivor(
        name=name,
        kind=kind,
        expected=expected,
        read=read,
        verified=report.digest,
        copies_compared=report.copies_compared,
        findings=(*report.findings, *(f"not looked at: {each}" for each in report.not_looked_at)),
        good_copies=good_copies(tree),
    )


def good_copies(volume: VolumeTree) -> tuple[int, ...]:
    """Of each region set in the volume, parents included, how many good members it has; 0 where one is not good or
    two share a sled."""
    found = []
    for node in _region_sets(volume.tree):
        good = [each for each in node.targets if each.agent_state == CREATED and each.disk_policy == IN_SERVICE]
        apart = len({each.sled_id for each in good}) == len(good)
        found.append(len(good) if apart and len(good) == len(node.targets) == COPIES else 0)
    return tuple(found)


def _region_sets(node: TreeNode) -> Iterator[RegionNode]:
    if isinstance(node, RegionNode):
        yield node
    elif not isinstance(node, SourceNode):
        for part in (*node.sub_volumes, *(() if node.read_only_parent is None else (node.read_only_parent,))):
            yield from _region_sets(part)


def sleds_under(volume: VolumeTree) -> list[str]:
    """The sleds on which the members of all its region sets are, one for each member."""
    return [str(each.sled_id) for node in _region_sets(volume.tree) for each in node.targets]
