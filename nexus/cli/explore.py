"""``nexus explore``: what may happen between any two steps of a saga, tried; no rack is needed.

Each run is a rack in memory with real bytes, some history, and something that interferes; in the end nothing may be
lost, wrong or left over. Exit code 1 where something was found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer

from crucible_emu.cli.new_paths import new_file
from crucible_emu.cli.progress import Progress
from crucible_emu.errors import UsageError
from nexus.cli.session import AsJson
from nexus.cli.showing import print_json
from nexus.explore import campaign, matrix, plan
from nexus.explore.campaign import PROCESSES, Report
from nexus.explore.cases import Case, parse
from nexus.explore.results import Result
from nexus.explore.scenarios import SCENARIOS
from nexus.explore.table import cases_of, safeguards_table
from nexus.explore.without import UnknownSafeguard, removals

app = typer.Typer()
FINDINGS_SHOWN = 20


@app.command()
def explore(
    scenario: Annotated[list[str] | None, typer.Option(help="Only these scenarios. \\[all]")] = None,
    pairs: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Two interferences: N second ones for each first moment.")
    ] = None,
    random: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="N cases of two to four, drawn by chance.")
    ] = None,
    seed: Annotated[int, typer.Option(help="What chance depends on.")] = 1,
    every: Annotated[int, typer.Option(metavar="N", min=1, help="Only every Nth case, for a sample.")] = 1,
    replay: Annotated[str | None, typer.Option(metavar="CASE", help="Run one case, and tell its story.")] = None,
    without: Annotated[str | None, typer.Option(metavar="SAFEGUARD", help="Take a safeguard out first.")] = None,
    safeguards: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take out each safeguard in turn; write the table (Markdown).")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="How many processes run cases.")] = PROCESSES,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the matrix as a page.")] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the matrix as a picture.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show scenarios and safeguards, and run nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Try what may happen between any two steps of every saga: every operation, at every moment.

    [bold]Examples[/bold]

      nexus explore --scenario delete-disk --every 10

      nexus explore --random 1000 --seed 7 --html matrix.html

      nexus explore --without R14
    """
    if list_:
        _show_list(as_json)
        return
    try:
        if safeguards is not None:
            _write_safeguards(safeguards, processes, every, as_json)
            return
        if replay is not None:
            _replay(replay, without, as_json)
            return
        with _pictures(html, png) as draw:
            cases = list(_cases(scenario or [], pairs, random, seed, every, without))
            began = time.monotonic()
            with _counting(len(cases)) as progress:
                report = campaign.run(
                    cases, processes=processes, without=without, stop_at_first=without is not None, progress=progress
                )
            seconds = time.monotonic() - began
            draw(report.results)
    except (UnknownSafeguard, ValueError) as error:
        raise UsageError(str(error)) from None
    _show(report, seconds, as_json)
    raise typer.Exit(bool(report.bad))


@contextmanager
def _pictures(html: Path | None, png: Path | None) -> Iterator[Callable[[list[Result]], None]]:
    """What draws the matrix into the files that were asked for. That they can be written is found out before anything
    runs: a run takes minutes, and would be lost."""
    with ExitStack() as files:
        page = None if html is None else files.enter_context(new_file(html, overwrite=True))
        picture = None if png is None else files.enter_context(new_file(png, overwrite=True))
        if picture is not None:
            matrix.require_matplotlib()

        def draw(results: list[Result]) -> None:
            if page is not None:
                page.write_text(matrix.as_html(results))
            if picture is not None:
                matrix.draw(results, picture)

        yield draw


@contextmanager
def _counting(cases: int) -> Iterator[Callable[[Result], None]]:
    """On a terminal, how far it is and what was found: a whole exploration takes ten minutes."""
    bad = 0

    def ran(result: Result) -> None:
        nonlocal bad
        progress(1)
        if result.violations:
            bad += 1
            progress.say(f"{bad} with violations")

    with Progress("exploring", cases, counted=True) as progress:
        yield ran


def _cases(
    names: list[str], pairs: int | None, random: int | None, seed: int, every: int, without: str | None
) -> Iterable[Case]:
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        raise UsageError(f"there is no scenario {unknown[0]!r}: one of {', '.join(SCENARIOS)}")
    if without is not None and not names and random is None and pairs is None:
        found = removals().get(without)
        if found is None:
            raise UnknownSafeguard(without)
        return plan.every_nth(cases_of(found), every)
    scenarios = plan.scenarios_named(names)
    if random is not None:
        return plan.chance(random, seed, scenarios)
    if pairs is not None:
        return plan.every_nth(chain.from_iterable(plan.pairs(each, pairs, seed) for each in scenarios), every)
    return plan.every_nth(chain.from_iterable(plan.one(each) for each in scenarios), every)


def _replay(text: str, without: str | None, as_json: bool) -> None:
    case = parse(text)
    if case.scenario not in SCENARIOS:
        raise UsageError(f"there is no scenario {case.scenario!r}: one of {', '.join(SCENARIOS)}")
    report = campaign.run([case], processes=1, without=without)
    result = report.results[0]
    if as_json:
        print_json(_result_json(result))
    else:
        for line in result.story:
            typer.echo(line)
        if not result.fired:
            typer.echo("not all of it happened: the course did not come by each of these moments")
        for line in result.violations or ["nothing is wrong"]:
            typer.echo(f"FOUND {line}" if result.violations else line)
    raise typer.Exit(bool(result.violations))


def _result_json(result: Result) -> dict[str, object]:
    return {
        "case": result.case,
        "story": list(result.story),
        "violations": list(result.violations),
        "trace_blake3": result.trace,
    }


def _show(report: Report, seconds: float, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "runs": report.runs,
                "violations": [_result_json(each) for each in report.bad],
                "findings": [
                    {
                        "violation": each.violation,
                        "cases": each.cases,
                        "story": [*each.story, *(f"FOUND {one}" for one in each.violations)],
                        "replay": each.replay,
                    }
                    for each in report.findings
                ],
                "unfired": report.unfired,
                "trace_blake3": report.trace_blake3,
                "seconds": round(seconds, 3),
            }
        )
        return
    for each in report.findings[:FINDINGS_SHOWN]:
        typer.echo(f"\n{each.cases} cases: {each.violation}")
        for line in each.story:
            typer.echo(f"  {line}")
        typer.echo(f"  {each.replay}")
    typer.echo(f"{report.runs} runs in {seconds:.1f} s, {len(report.bad)} with violations, trace {report.trace_blake3}")


def _show_list(as_json: bool) -> None:
    if as_json:
        known = {name: {"sagas": each.sagas, "operations": each.operations} for name, each in SCENARIOS.items()}
        print_json({"scenarios": known, "safeguards": {name: each.what for name, each in removals().items()}})
        return
    for name, each in SCENARIOS.items():
        typer.echo(f"{name}: {', '.join(each.sagas)}")
    typer.echo("")
    for safeguard, removal in removals().items():
        typer.echo(f"{safeguard}: {removal.what}")


def _write_safeguards(path: Path, processes: int, every: int, as_json: bool) -> None:
    with new_file(path, overwrite=True) as growing:
        text, undetected = safeguards_table(processes, every)
        growing.write_text(text)
    if as_json:
        print_json({"file": str(path), "safeguards": len(removals()), "undetected": undetected})
    else:
        typer.echo(f"{len(removals())} safeguards, not detected: {', '.join(undetected) or 'none'}")
    raise typer.Exit(bool(undetected))
