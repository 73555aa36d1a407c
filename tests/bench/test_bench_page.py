"""The report: what stands in it, by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench import charts
from bench.document import Block, Bullets, Heading, Paragraph, Picture, Table, markdown
from bench.lines import RUN
from bench.page import page, verdict_lines
from bench.results import Results
from bench.rounds import Failure
from bench.subjects import ALL, MEMORY, NO_ENCRYPTION, OURS, PEER

W16, SEQUENTIAL = "randwrite-4k-qd16", "read-1m-qd4"


@pytest.fixture
def results(results_of: Callable[..., Results]) -> Results:
    return results_of(
        {
            (W16, OURS): [300.0, 380.0],
            (W16, PEER): [100.0, 100.0],
            (W16, MEMORY): [400.0, 400.0],
            (SEQUENTIAL, OURS): [256.0, 256.0],
            (SEQUENTIAL, PEER): [256.0, 256.0],
        },
        failures=(Failure(SEQUENTIAL, MEMORY, 1, "it fell over"),),
        absent={"asyncio-aiofiles": "no room"},
        disqualified={"nbdkit-file": "crc32c: verify failed"},
    )


def under(blocks: list[Block], heading: str) -> list[Block]:
    """The blocks of a section."""
    start = next(n for n, block in enumerate(blocks) if isinstance(block, Heading) and block.text == heading)
    rest = blocks[start + 1 :]
    return rest[: next((n for n, block in enumerate(rest) if isinstance(block, Heading)), len(rest))]


def table(blocks: list[Block], heading: str, number: int = 0) -> dict[str, list[str]]:
    """The rows of a section's table, by their first cell."""
    found = [block for block in under(blocks, heading) if isinstance(block, Table)][number]
    return {row[0]: list(row[1:]) for row in found.rows}


def test_floors_have_every_line_with_its_verdict(results: Results) -> None:
    blocks = page(results)
    floors = table(blocks, "Floors and goals")
    assert list(floors) == [line.name for line in RUN]
    assert floors[W16] == ["3", "3.40 (3.00–3.80)", "met", "5.6", "1.1", "0.85 (0.75–0.95)", "not met"]
    assert floors[SEQUENTIAL] == ["1.8", "1.00 (1.00–1.00)", "not met", "2.9", "1.5", "–", "not measured"]
    assert floors["randread-4k-qd1"][1:3] == ["–", "not measured"]
    further = table(blocks, "Floors and goals", 1)
    latency = f"{OURS}, {W16}: 99th percentile of latency at most 1 × that of {PEER}"
    assert further == {latency: ["0.30 (0.26–0.33)", "met"]}
    text = markdown(blocks)
    assert "2 of 3 floors that were measured are met, 0 of 1 goals that were measured are met" in text


def test_every_subject_says_what_it_does_not_do(results: Results) -> None:
    assert all(subject.lacks for subject in ALL)
    found = table(page(results), "Who was asked, and what they do not do")
    assert set(found) == {OURS, PEER, MEMORY, "nbdkit-file", "asyncio-aiofiles"}
    assert NO_ENCRYPTION in found[PEER][2]
    assert found[MEMORY][1] == "none"


def test_figures_stand_by_line_and_subject(results: Results) -> None:
    blocks = page(results)
    assert table(blocks, "Rates")[W16] == ["340", "100", "400"]
    assert table(blocks, "Rates")[SEQUENTIAL] == ["1 MiB", "1 MiB", "–"]
    assert table(blocks, "Latency")[W16][1] == "10 / 10,000 / 40"
    assert table(blocks, "CPU time")[W16] == ["5.0", "5.0", "5.0"]


def test_who_is_missing_and_what_failed_is_named(results: Results, results_of: Callable[..., Results]) -> None:
    (said,) = under(page(results), "What is missing")
    assert said == Bullets(
        [
            "missing: asyncio-aiofiles: no room",
            "disqualified: nbdkit-file: crc32c: verify failed",
            f"failed: {MEMORY}, round 2: {SEQUENTIAL}: it fell over",
        ]
    )
    assert table(page(results), "Rates").keys() == {line.name for line in RUN}
    (said,) = under(page(results_of({(W16, OURS): [1.0]})), "What is missing")
    assert isinstance(said, Paragraph)
    assert said.text.startswith("Nothing")


def test_machine_commit_and_noise_are_told(results: Results, results_of: Callable[..., Results]) -> None:
    text = markdown(page(results))
    assert f"commit {'a' * 40}" in text
    assert "2 cores of Some Processor, 4,096 MiB of memory, files on ext4, load 0.1 before the run" in text
    assert "fio: fio-3.33" in text
    assert "rates differ by 0% of their median" in text
    assert "One round shows no noise" in markdown(page(results_of({(W16, OURS): [1.0]})))


def test_verdicts_for_a_terminal(results: Results) -> None:
    assert verdict_lines(results)[0] == f"{OURS}, {W16}: 3.40 (3.00–3.80) × {PEER}, floor 3: met"


def test_every_subject_has_a_colour_of_its_own_whoever_is_beside_it() -> None:
    alone, beside = charts.colours([OURS]), charts.colours([*("one", "of an old report"), PEER, OURS])
    assert len(set(beside.values())) == len(beside) > len(alone) > 1
    assert alone == {name: beside[name] for name in alone}


def test_every_picture_of_the_report_is_drawn(results: Results, results_of: Callable[..., Results]) -> None:
    pytest.importorskip("matplotlib")
    random_only = tuple(line for line in RUN if not line.sequential)
    empty = results_of({}, absent={OURS: "it did not start"})
    for found in (results, results_of({(W16, OURS): [1.0, 2.0]}, lines=random_only), empty):
        named = {block.file for block in page(found) if isinstance(block, Picture)}
        drawn = charts.draw(found)
        assert named <= set(drawn)
        assert all(data.startswith(b"\x89PNG\r\n") for data in drawn.values())
