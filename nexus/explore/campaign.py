"""Many runs: over two processes or more, and the same result however they are split.

What it guarantees: the outcome of each case is computed by itself, so who ran it does not matter; the trace of a
campaign is the digest of all cases with their traces, in the order of the plan. A finding is *shrunk*: interferences
are left out one by one as long as something is still wrong. What many cases find is told once, by the shortest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context

from blake3 import blake3

from nexus.explore.cases import Case, parse
from nexus.explore.results import Result, kind_of
from nexus.explore.run import run_case, run_cases
from nexus.explore.without import removed

CHUNK_CASES = 128
CHUNK_CASES_TO_FIRST = 16
"""Where the first finding is wanted."""
PROCESSES = 2


@dataclass
class Finding:
    """What is wrong in one way: the shortest story, and how many cases found it."""

    violation: str
    case: str
    story: tuple[str, ...]
    violations: tuple[str, ...]
    cases: int = 1

    @property
    def replay(self) -> str:
        return f'nexus explore --replay "{self.case}"'


@dataclass
class Report:
    """All of a campaign. ``unfired``: cases of which not all happened: a refused operation changed the course."""

    runs: int = 0
    results: list[Result] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    trace_blake3: str = ""
    unfired: int = 0

    @property
    def bad(self) -> list[Result]:
        return [each for each in self.results if each.violations]


def result_of(text: str) -> Result:
    """Run one case."""
    return run_case(parse(text)).result()


def _chunk(texts: Sequence[str]) -> list[Result]:
    """Cases of one scenario."""
    return run_cases([parse(text) for text in texts])


_kept_out = ExitStack()


def _begin(without: str | None) -> None:
    if without is not None:
        _kept_out.enter_context(removed(without))


def run(
    cases: Iterable[Case],
    *,
    processes: int = PROCESSES,
    without: str | None = None,
    stop_at_first: bool = False,
    progress: Callable[[Result], None] = lambda result: None,
) -> Report:
    """Run all cases. ``without``: the safeguard that is taken out; then ``stop_at_first`` finding is usual."""
    texts = [str(case) for case in cases]
    done: dict[str, Result] = {}
    for results in _results(texts, processes, without, CHUNK_CASES_TO_FIRST if stop_at_first else CHUNK_CASES):
        for result in results:
            done[result.case] = result
            progress(result)
        if stop_at_first and any(each.violations for each in results):
            break
    report, digest = Report(), blake3()
    for result in (done[text] for text in texts if text in done):
        report.runs += 1
        report.results.append(result)
        report.unfired += not result.fired
        digest.update(f"{result.case}\n{result.trace}\n".encode())
    report.trace_blake3 = digest.hexdigest()
    with ExitStack() as stack:
        if without is not None:
            stack.enter_context(removed(without))
        report.findings = findings_of(report.bad)
    return report


def _results(texts: list[str], processes: int, without: str | None, chunk_cases: int) -> Iterator[list[Result]]:
    chunks = list(chunks_of(texts, chunk_cases))
    if processes <= 1:
        with ExitStack() as stack:
            if without is not None:
                stack.enter_context(removed(without))
            yield from map(_chunk, chunks)
        return
    # Not forked: a child would have the database and the loop of its parent.
    with ProcessPoolExecutor(processes, get_context("spawn"), _begin, (without,)) as pool:
        under_way = [pool.submit(_chunk, chunk) for chunk in islice(chunks, 2 * processes)]
        ahead = iter(chunks[2 * processes :])
        try:
            while under_way:
                yield under_way.pop(0).result()
                following = next(ahead, None)
                if following is not None:
                    under_way.append(pool.submit(_chunk, following))
        finally:
            pool.shutdown(cancel_futures=True)


def chunks_of(texts: Iterable[str], cases: int) -> Iterator[list[str]]:
    """Cases by scenario, so many at a time: those of one scenario have much in common."""
    by_scenario: dict[str, list[str]] = {}
    for text in texts:
        by_scenario.setdefault(text.partition(":")[0], []).append(text)
    for found in by_scenario.values():
        yield from (found[at : at + cases] for at in range(0, len(found), cases))


def findings_of(bad: Iterable[Result]) -> list[Finding]:
    """One for each way in which something is wrong, the most frequent first."""
    found: dict[str, Finding] = {}
    for result in sorted(bad, key=lambda each: (each.case.count(";"), len(each.case), each.case)):
        way = kind_of(result.violations[0])
        if way in found:
            found[way].cases += 1
        else:
            found[way] = Finding(result.violations[0], result.case, result.story, result.violations)
    shrunk = [_shrunk(each) for each in found.values()]
    return sorted(shrunk, key=lambda each: (-each.cases, each.case))


def _shrunk(finding: Finding) -> Finding:
    result = shrunk(Result(finding.case, finding.violations, finding.story, "", True))
    return Finding(result.violations[0], result.case, result.story, result.violations, finding.cases)


def shrunk(result: Result) -> Result:
    """The same with the fewest interferences that still find something."""
    case = parse(result.case)
    for number in range(len(case.interferences)):
        fewer = result_of(str(case.without(number)))
        if fewer.violations:
            return shrunk(fewer)
    return result
