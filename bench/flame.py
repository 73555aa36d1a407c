"""A flame graph as one SVG file: where the time of an operation goes, function by function.

What it is for: the table of layers says how much, this says by whom: a function is a bar as wide as its share, above
the one that called it. The colour is the layer's. It opens in any browser, without a network and without a script; what
a bar is stands in its tooltip, with its layer, its µs per operation and its share.

What it guarantees: pure, and the same picture for the same stacks: neighbours stand in alphabetical order, not in that
of time. A bar narrower than :data:`NARROW` is left out, its time is not: the one below stays as wide as it was.
"""

from __future__ import annotations

import xml.etree.ElementTree as xml
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.layers import LAYERS, Stack, layer_of

WIDTH, ROW, MARGIN = 1600, 17, 10
LETTER = 6.6
"""How wide a letter is, about, in the font of the bars."""
LETTERS_MIN = 3
NARROW = 0.0005
LEGEND_COLUMNS = 5
COLOURS = {layer.name: f"hsl({index * 137 % 360}, {55 + index % 3 * 15}%, 72%)" for index, layer in enumerate(LAYERS)}
"""The golden angle: neighbours in the table look different."""


@dataclass(slots=True)
class Node:
    """A function in one place of the tree; ``weight`` with all that it called."""

    name: str
    layer: str = ""
    weight: float = 0.0
    called: dict[str, Node] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """How many rows it takes, itself included."""
        return 1 + max((node.depth for node in self.called.values()), default=0)


def trim(stacks: Iterable[tuple[Stack, float]]) -> list[tuple[Stack, float]]:
    """The stacks without what all of a kind of thread begin with: the way from the command to the event loop."""
    found = list(stacks)
    common: dict[str, Stack] = {}
    for stack, _ in found:
        known = common.get(stack[0], stack[1:])
        same = next((at for at, (one, other) in enumerate(zip(known, stack[1:])) if one != other), None)
        common[stack[0]] = known[: min(len(known), len(stack) - 1) if same is None else same]
    return [((stack[0], *stack[1 + len(common[stack[0]]) :]), weight) for stack, weight in found]


def tree(stacks: Iterable[tuple[Stack, float]]) -> Node:
    """What called what; the layer of a place is that of the stack which ends there."""
    root = Node("all")
    layers: dict[tuple[str, ...], str] = {}
    for stack, weight in stacks:
        root.weight += weight
        node = root
        for at, name in enumerate(stack, start=1):
            node = node.called.setdefault(name, Node(name))
            path = tuple(stack[:at])
            node.layer = layers.get(path) or layers.setdefault(path, layer_of(path))
            node.weight += weight
    return root


def short(name: str) -> str:
    """A frame without its module: what there is room for on a bar."""
    return name if name.startswith("[") else name.partition(":")[2] or name


def _bar(parent: xml.Element, node: Node, left: float, top: float, width: float, cost: str) -> None:
    group = xml.SubElement(parent, "g")
    xml.SubElement(group, "title").text = f"{node.name} ({node.layer}): {cost}" if node.layer else f"all: {cost}"
    place = {"x": f"{left:.2f}", "y": f"{top:.0f}", "width": f"{width:.2f}", "height": f"{ROW - 1}"}
    xml.SubElement(group, "rect", place | {"fill": COLOURS.get(node.layer, "#ddd"), "rx": "1"})
    letters = int((width - 4) / LETTER)
    if letters >= LETTERS_MIN:
        name = short(node.name)
        text = xml.SubElement(group, "text", {"x": f"{left + 3:.2f}", "y": f"{top + ROW - 5:.0f}"})
        text.text = name if len(name) <= letters else f"{name[: letters - 1]}…"


def svg(stacks: Sequence[tuple[Stack, float]], cpu_us: float, title: str, costs: Mapping[str, float]) -> str:
    """The file's text. ``cpu_us`` is what one operation costs altogether; ``costs`` the layers of the legend with their
    µs per operation. Raises :class:`ValueError` where the stacks weigh nothing."""
    root = tree(trim(stacks))
    if root.weight <= 0:
        raise ValueError("no stack was sampled: measure for longer")
    legend = [(name, cost) for name, cost in costs.items() if cost]
    head = MARGIN + ROW * (2 + -(-len(legend) // LEGEND_COLUMNS))
    height = head + ROW * root.depth + MARGIN
    size = {"width": f"{WIDTH}", "height": f"{height}", "viewBox": f"0 0 {WIDTH} {height}"}
    picture = xml.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **size})
    xml.SubElement(
        picture, "style"
    ).text = "text { font: 11px monospace } g rect { stroke: #fff } g rect:hover { stroke: #000 }"
    xml.SubElement(picture, "rect", {"width": "100%", "height": "100%", "fill": "#fff"})
    xml.SubElement(picture, "text", {"x": f"{MARGIN}", "y": f"{MARGIN + ROW - 5}"}).text = title
    column = (WIDTH - 2 * MARGIN) / LEGEND_COLUMNS
    for index, (name, cost) in enumerate(legend):
        left, top = MARGIN + index % LEGEND_COLUMNS * column, MARGIN + ROW * (1 + index // LEGEND_COLUMNS)
        square = {"x": f"{left:.0f}", "y": f"{top}", "width": "12", "height": "12", "fill": COLOURS.get(name, "#ddd")}
        xml.SubElement(picture, "rect", square)
        label = xml.SubElement(picture, "text", {"x": f"{left + 17:.0f}", "y": f"{top + 10}"})
        label.text = f"{name} {cost:.2f} µs"
    scale = (WIDTH - 2 * MARGIN) / root.weight
    waiting = [(root, float(MARGIN), 1)]
    while waiting:
        node, left, depth = waiting.pop()
        share = node.weight / root.weight
        top = height - MARGIN - ROW * depth
        _bar(picture, node, left, top, node.weight * scale, f"{cpu_us * share:.2f} µs, {share:.1%}")
        for name in sorted(node.called):
            inner = node.called[name]
            if inner.weight >= NARROW * root.weight:
                waiting.append((inner, left, depth + 1))
            left += inner.weight * scale
    return xml.tostring(picture, encoding="unicode") + "\n"
