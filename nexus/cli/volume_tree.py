"""A volume as a tree for people: what it is made of, and the state of each replica."""

from __future__ import annotations

from rich.markup import escape
from rich.tree import Tree

from crucible_emu.cli.sizes import format_size
from nexus.api.emulator_documents import RegionNode, SourceNode, TargetState, TreeNode, VolumeTree

KINDS = {
    "read_write_region": "region",
    "read_only_region": "read-only region",
    "region_snapshot": "snapshot of a region",
    "unknown": "nothing that is known",
}
GOOD = "created"


def drawn(volume: VolumeTree) -> Tree:
    """All of it."""
    owner = "" if volume.owner is None else f" of {volume.owner.kind.replace('_', ' ')} {_named(volume)}"
    gone = "" if volume.time_deleted is None else ", [red]deleted[/red]"
    tree = Tree(f"volume {volume.id}{owner}{gone}")
    _add(tree, volume.tree, "")
    return tree


def _named(volume: VolumeTree) -> str:
    assert volume.owner is not None
    return escape(volume.owner.name or str(volume.owner.id))


def _add(tree: Tree, node: TreeNode, role: str) -> None:
    if isinstance(node, RegionNode):
        _add_region_set(tree, node, role)
    elif isinstance(node, SourceNode):
        tree.add(f"{role}{node.type}, blocks of {node.block_size} bytes")
    else:
        branch = tree.add(f"{role}volume {node.id}, blocks of {node.block_size} bytes")
        for part in node.sub_volumes:
            _add(branch, part, "")
        if node.read_only_parent is not None:
            _add(branch, node.read_only_parent, "read-only parent: ")


def _add_region_set(tree: Tree, node: RegionNode, role: str) -> None:
    words = [
        f"{node.extent_count} extents of {format_size(node.blocks_per_extent * node.block_size)}",
        f"generation {node.generation}",
        "read-only" if node.read_only else "read and write",
        "encrypted" if node.encrypted else "not encrypted",
    ]
    branch = tree.add(f"{role}region set, {format_size(node.size_bytes)}: {', '.join(words)}")
    for target in node.targets:
        branch.add(target_line(target))


def target_line(target: TargetState) -> str:
    """One replica, its trouble in red."""
    parts = [f"{escape(target.address)}  {KINDS[target.kind]}"]
    if target.region_id is not None:
        parts.append(str(target.region_id))
    if target.snapshot_id is not None:
        parts.append(f"at snapshot {target.snapshot_id}")
    if target.disk_policy == "expunged":
        parts.append("[red]its disk is expunged[/red]")
    state = target.agent_state
    if state is None:
        parts.append("[yellow]its agent does not say[/yellow]")
    else:
        parts.append(f"[green]{state}[/green]" if state == GOOD else f"[red]{state}[/red]")
    return "  ".join(parts)
