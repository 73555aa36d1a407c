"""The flame graph: a tree with nothing lost, drawn to scale, in a file that needs nobody."""

from __future__ import annotations

import xml.etree.ElementTree as xml

import pytest

from bench import flame, layers
from bench.layers import LAYERS
from bench.sampled import MAIN_THREAD, OTHER_THREADS

NS = "{http://www.w3.org/2000/svg}"
PARSE, GUEST = "crucible_emu.nbd.transmission:Intake.parse", "crucible_emu.upstairs.guest:Guest.submit"
STACKS = [
    ((MAIN_THREAD, "cli:main", "trio:run", PARSE), 30.0),
    ((MAIN_THREAD, "cli:main", "trio:run", GUEST, "numpy:<genexpr>"), 50.0),
    ((MAIN_THREAD, "cli:main", "trio:run", GUEST), 10.0),
    ((OTHER_THREADS, "threading:run", "json:loads & dumps"), 10.0),
]


def bars(text: str) -> dict[str, tuple[float, float]]:
    """By tooltip: left edge and width of each bar."""
    found = {}
    for group in xml.fromstring(text).iter(f"{NS}g"):
        title, rect = group.find(f"{NS}title"), group.find(f"{NS}rect")
        assert title is not None and title.text is not None and rect is not None
        found[title.text] = (float(rect.attrib["x"]), float(rect.attrib["width"]))
    return found


def test_way_to_the_loop_is_left_out_and_time_is_not() -> None:
    trimmed = flame.trim(STACKS)
    assert trimmed[0] == ((MAIN_THREAD, PARSE), 30.0)
    assert trimmed[1] == ((MAIN_THREAD, GUEST, "numpy:<genexpr>"), 50.0)
    assert trimmed[3] == ((OTHER_THREADS,), 10.0)
    root = flame.tree(trimmed)
    assert (root.weight, root.depth) == (100.0, 4)
    main = root.called[MAIN_THREAD]
    assert {name: node.weight for name, node in main.called.items()} == {PARSE: 30.0, GUEST: 60.0}
    assert main.called[GUEST].called["numpy:<genexpr>"].layer == layers.GUEST
    assert main.layer == layers.OTHER


def test_bars_are_to_scale_and_inside_the_one_below() -> None:
    text = flame.svg(STACKS, 20.0, "title", {"reply": 1.5, "event loop": 0.0})
    found = bars(text)
    whole = found["all: 20.00 µs, 100.0%"]
    parse = found[f"{PARSE} (receive and parse): 6.00 µs, 30.0%"]
    guest = found[f"{GUEST} (admission: guest): 12.00 µs, 60.0%"]
    inner = found["numpy:<genexpr> (admission: guest): 10.00 µs, 50.0%"]
    assert parse[1] == pytest.approx(whole[1] * 0.3, abs=0.1)
    assert guest[1] == pytest.approx(whole[1] * 0.6, abs=0.1)
    assert guest[0] <= inner[0] and inner[0] + inner[1] <= guest[0] + guest[1] + 0.02
    assert guest[0] == pytest.approx(parse[0] + parse[1], abs=0.02) or parse[0] == pytest.approx(sum(guest), abs=0.02)


def test_file_needs_no_network_and_no_script() -> None:
    text = flame.svg(STACKS, 20.0, "a < b & c", {"reply": 1.5, "event loop": 0.0})
    assert "<script" not in text and "href" not in text
    assert text.replace('xmlns="http://www.w3.org/2000/svg"', "").count("http") == 0
    words = [element.text for element in xml.fromstring(text).iter(f"{NS}text")]
    assert words[:2] == ["a < b & c", "reply 1.50 µs"]
    assert "event loop 0.00 µs" not in words
    assert text == flame.svg(STACKS[::-1], 20.0, "a < b & c", {"reply": 1.5, "event loop": 0.0})


def test_narrow_bars_are_left_out_and_long_names_cut() -> None:
    stacks = [((MAIN_THREAD, "a:b"), 1e6), ((MAIN_THREAD, "c:d"), 1.0), ((MAIN_THREAD, "e:" + "f" * 400), 1e6)]
    text = flame.svg(stacks, 1.0, "title", {})
    assert not any(title.startswith("c:d") for title in bars(text))
    (cut,) = [element.text for element in xml.fromstring(text).iter(f"{NS}text") if (element.text or "").endswith("…")]
    assert len(cut or "") * flame.LETTER < flame.WIDTH / 2


def test_every_layer_has_a_colour_of_its_own() -> None:
    assert len({flame.COLOURS[layer.name] for layer in LAYERS}) == len(LAYERS)


def test_nothing_sampled_is_no_picture() -> None:
    with pytest.raises(ValueError, match="no stack was sampled"):
        flame.svg([], 1.0, "title", {})
