"""``crucible-emu exercise``: workloads over a disk, every read checked, with a log of writes that outlives the tester.

What it guarantees: exit code 0 means that every block that was read held what it should. The first wrong block ends
the run with exit code 1 and one sentence that names it, what it should hold and what it holds. The journal knows of
every write before the disk does, so after a crash of anything, this program included, the next run can tell which
blocks must hold their last write and which may.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import trio
import typer

from crucible_emu.cli import serving
from crucible_emu.cli.new_paths import new_file
from crucible_emu.cli.program import FAILURE_EXIT, INTERRUPT_EXIT, sentence_for
from crucible_emu.cli.progress import Progress
from crucible_emu.cli.sizes import format_size, parse_extent_size
from crucible_emu.errors import CrucibleError, RemoteError, UsageError
from crucible_emu.exercise import workloads
from crucible_emu.exercise.content import Rule
from crucible_emu.exercise.control import Control, connected
from crucible_emu.exercise.disk import Interrupted, Subject
from crucible_emu.exercise.journal import opened
from crucible_emu.exercise.layout import Layout, layout_of
from crucible_emu.exercise.rates import rates
from crucible_emu.exercise.runner import IntegrityError, RunnerStatistics
from crucible_emu.exercise.scenarios import SCENARIOS, Setting
from crucible_emu.exercise.workloads import WORKLOADS, Plan
from crucible_emu.exercise.write_log import WriteLog
from crucible_emu.volume import vcr

if TYPE_CHECKING:
    from crucible_emu.blockio import BlockDevice

app = typer.Typer(no_args_is_help=True)

DEPTH = 8
E = TypeVar("E", bound=BaseException)
TIME_S = 60.0
SAMPLE_S = 1.0


def _listing() -> str:
    """The workloads, one paragraph each, for the help page."""
    rows = [(name, row.line) for table in (WORKLOADS, SCENARIOS) for name, row in table.items()]
    return "\n\n".join(f"  [bold]{name}[/bold]: {line}" for name, line in rows)


HELP = f"""Write to a disk and check what comes back.

WORKLOAD is one of those below. Every write is counted per block in a journal before it is issued; a block's content
follows from its number and count, so every read can be checked. After a crash of a replica, or of this command, run
[bold]exercise verify[/bold] with the same journal: what was flushed must be there, what was not may be.

[bold]Examples[/bold]

  crucible-emu downstairs run-many /tmp/ds --create --count 4 --vcr /tmp/disk.json

  crucible-emu exercise fill /tmp/disk.json

  crucible-emu exercise demo /tmp/disk.json --count 5000 --depth 64

  crucible-emu exercise replace /tmp/disk.json --control http://127.0.0.1:9998

  crucible-emu exercise rand-write /tmp/disk.json --depth 16 --time 10 --json

[bold]Workloads[/bold]

{_listing()}
"""


@dataclass(slots=True)
class Wishes:
    """What the command line says."""

    workload: str
    count: int | None
    depth: int | None
    io_size: str
    time_s: float
    sample_s: float
    verify_at_start: bool
    verify_at_end: bool
    in_range: bool
    skip_verify: bool
    spare: str | None
    seed: int
    as_json: bool
    verify_in: Path | None
    verify_out: Path | None

    def say(self, line: str) -> None:
        if not self.as_json:
            print(line, flush=True)


@dataclass(slots=True)
class Run:
    """One run: what it works on, and what came of it."""

    wishes: Wishes
    setting: Setting
    began_s: float = field(default_factory=time.monotonic)
    samples: list[Any] = field(default_factory=list)

    @property
    def totals(self) -> RunnerStatistics:
        """The statistics of all runners together."""
        total = RunnerStatistics()
        for each in self.setting.totals:
            for name, value in asdict(each).items():
                setattr(total, name, getattr(total, name) + value)
        return total

    def summary(self, wrong: IntegrityError | None, error: str | None = None) -> dict[str, Any]:
        found = rates(self.samples)
        return {
            "workload": self.wishes.workload,
            "ok": wrong is None and error is None,
            "seed": self.wishes.seed,
            "seconds": round(time.monotonic() - self.began_s, 3),
            **asdict(self.totals),
            "doubtful_blocks": int(self.setting.log.doubtful.sum()),
            "rates": None if found is None else found.as_json(),
            "wrong_block": None if wrong is None else asdict(wrong.wrong),
            "error": error,
        }

    def report(self, wrong: IntegrityError | None) -> None:
        """The summary, as JSON or as lines."""
        facts = self.summary(wrong)
        if self.wishes.as_json:
            print(json.dumps(facts), flush=True)
            return
        total = self.totals
        print(
            f"{self.wishes.workload}: {total.reads} reads, {total.writes} writes, {total.flushes} flushes, "
            f"{format_size(total.bytes)} in {facts['seconds']:.1f} s; {total.checked_blocks} blocks checked, "
            f"{total.errors} errors (seed {self.wishes.seed})"
        )
        if facts["rates"]:
            rate = facts["rates"]
            print(
                f"IOPS mean {rate['iops_mean']:.0f}, stddev {rate['iops_stddev']:.0f}, min {rate['iops_min']:.0f}, "
                f"max {rate['iops_max']:.0f}; {format_size(int(rate['bytes_per_s_mean']))}/s"
            )
        sys.stdout.flush()


@app.command(help=HELP)
def exercise(
    workload: Annotated[str, typer.Argument(metavar="WORKLOAD", help="What to do; see below.")],
    request: Annotated[
        Path | None, typer.Argument(metavar="[VCR.json]", help="The disk; with --control it may be left out.")
    ] = None,
    control: Annotated[
        str | None, typer.Option(metavar="URL", help="Control API of run-many (or of the real dsc).")
    ] = None,
    journal: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where writes are counted. [VCR.json.journal]")
    ] = None,
    content: Annotated[
        str, typer.Option(help="For a new journal: crutest, or stamped, which tells every block and count apart.")
    ] = Rule.CRUTEST.value,
    blank: Annotated[
        bool, typer.Option("--blank", help="For a new journal: the disk is new, so what was never written is zeros.")
    ] = False,
    count: Annotated[int | None, typer.Option(min=1, help="How often; by default as the real tester.")] = None,
    depth: Annotated[int | None, typer.Option(min=1, help="Requests in flight.")] = None,
    io_size: Annotated[str, typer.Option(help="For rand-*: blocks per request, or bytes with a unit.")] = "1",
    time_s: Annotated[float, typer.Option("--time", min=0.001, help="For rand-read and rand-write: seconds.")] = TIME_S,
    sample_s: Annotated[float, typer.Option("--sample-time", min=0.001, help="Seconds of each sample.")] = SAMPLE_S,
    seed: Annotated[int | None, typer.Option(help="Repeats offsets and sizes; drawn and shown if absent.")] = None,
    generation: Annotated[
        int | None, typer.Option("--gen", "-g", min=1, help="First generation; raised to what is due.")
    ] = None,
    replacement: Annotated[str | None, typer.Option(metavar="IP:PORT", help="A spare Downstairs.")] = None,
    key: Annotated[Path | None, typer.Option(metavar="KEYFILE", help="With --control: the disk's key.")] = None,
    timeout: Annotated[float, typer.Option(min=0, help="Give up when not active within so many seconds.")] = 60.0,
    verify_at_start: Annotated[bool, typer.Option("--verify-at-start", help="Check all blocks first.")] = False,
    verify_at_end: Annotated[bool, typer.Option("--verify-at-end", help="Check all blocks at the end.")] = False,
    in_range: Annotated[
        bool, typer.Option("--range", help="Accept any count since the last flush, for every block.")
    ] = False,
    skip_verify: Annotated[bool, typer.Option("--skip-verify", help="For fill: do not read it back.")] = False,
    verify_in: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take the counts of this file, crutest's JSON.")
    ] = None,
    verify_out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the counts to this file at the end.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object.")] = False,
) -> None:
    if workload not in WORKLOADS and workload not in SCENARIOS:
        raise UsageError(f"{workload!r} is no workload: take one of {', '.join((*WORKLOADS, *SCENARIOS))}")
    if content not in list(Rule):
        raise UsageError(f"{content!r} is no content: take one of {', '.join(Rule)}")
    if request is None and control is None:
        raise UsageError("say which disk: give VCR.json, or the --control URL of run-many")
    wishes = Wishes(
        workload, count, depth, io_size, time_s, sample_s, verify_at_start, verify_at_end, in_range, skip_verify,
        replacement, secrets.randbits(32) if seed is None else seed, as_json, verify_in, verify_out,
    )  # fmt: skip
    given = None if request is None else vcr.load(request)
    key_text = None if key is None else _key(key)
    place = journal or (None if request is None else request.with_name(f"{request.name}.journal"))

    async def work() -> int:
        if control is None:
            assert given is not None
            return await _with_disk(wishes, given, None)
        async with connected(control) as client:
            return await _with_disk(wishes, given or await client.volume_request(key_text), client)

    async def _with_disk(wishes: Wishes, found: vcr.VolumeConstructionRequest, client: Control | None) -> int:
        layout = layout_of(found)
        subject = Subject(found, generation=generation, timeout_s=timeout)
        subjects.append(subject)
        with ExitStack() as stack:
            if place is None:
                log = WriteLog.new(layout.block_count, rule=Rule(content), blank=blank)
            else:
                disk = str(found.id if isinstance(found, vcr.VolumeRequest) else subject.region().opts.id)
                about = (disk, layout.block_size, layout.block_count, Rule(content), blank)
                kept = stack.enter_context(opened(place, *about))
                log = kept.log
                subject.generation = max(subject.generation, kept.generation + 1)
                subject.remember = lambda number: setattr(kept, "generation", number)
            return await _exercise(wishes, subject, layout, log, client)

    code, subjects = INTERRUPT_EXIT, list[Subject]()

    async def main() -> None:
        nonlocal code
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    nursery.start_soon(_end_on_signal, signals, subjects, scope)
                    code = await work()
                nursery.cancel_scope.cancel()

    # A scenario brings about the very trouble that a warning would speak of.
    serving.run(main, log_level="error" if workload in SCENARIOS else "warning")
    if code:
        raise typer.Exit(code)


async def _end_on_signal(signals: AsyncIterator[int], subjects: list[Subject], scope: trio.CancelScope) -> None:
    """The first signal ends the run in order: what is in flight is finished, and the disk is flushed. The second ends
    the process; the journal stays marked as in use."""
    await anext(signals)
    if not any(subject.interrupt() for subject in subjects):
        scope.cancel()
    await anext(signals)
    os._exit(INTERRUPT_EXIT)


async def _exercise(wishes: Wishes, subject: Subject, layout: Layout, log: WriteLog, control: Control | None) -> int:
    """Run what was asked for and say what came of it; the exit code, 1 where a block was wrong."""
    if wishes.verify_in is not None:
        log.load(wishes.verify_in.read_bytes(), str(wishes.verify_in))
    row = WORKLOADS.get(wishes.workload)
    setting = Setting(
        subject,
        log,
        layout,
        Random(wishes.seed),
        wishes.count or (SCENARIOS[wishes.workload].count if row is None else row.count),
        depth=wishes.depth or (DEPTH if row is None else row.depth),
        control=control,
        in_range=wishes.in_range,
        say=wishes.say,
        spare=wishes.spare,
    )
    if setting.spare is None and control is not None:
        own = set(subject.region().opts.target) if len(layout.region_sets) == 1 else set()
        setting.spare = next((each for each in await control.targets() if own and each not in own), None)
    run = Run(wishes, setting)
    try:
        if wishes.workload in SCENARIOS:
            await _scenario(run)
        else:
            await _workload(run)
    except (IntegrityError, Interrupted, CrucibleError, RemoteError, BaseExceptionGroup) as error:
        wrong = contained(error, IntegrityError)
        if wrong is None and contained(error, Interrupted) is not None:
            return INTERRUPT_EXIT
        if wrong is None:
            if wishes.as_json:
                print(json.dumps(run.summary(None, sentence_for(innermost(error)))), flush=True)
            raise
        _write_counts(run)
        run.report(wrong)
        print(f"Error: {wrong}", file=sys.stderr)
        return FAILURE_EXIT
    _write_counts(run)
    run.report(None)
    if run.totals.reads and not run.totals.checked_blocks:
        print("Warning: the journal knows of no write to these blocks, so nothing could be checked", file=sys.stderr)
    return 0


async def _scenario(run: Run) -> None:
    setting = run.setting
    if run.wishes.verify_at_start or setting.log.doubtful.any():
        async with setting.subject.active() as device:
            await _verify(run, device)
    await SCENARIOS[run.wishes.workload].play(setting)
    async with setting.subject.active() as device:
        await _verify(run, device)
    setting.log.commit_all()


async def _workload(run: Run) -> None:
    wishes, setting = run.wishes, run.setting
    row = WORKLOADS[wishes.workload]
    io_blocks = parse_extent_size(wishes.io_size, setting.layout.block_size)
    if not 1 <= io_blocks <= setting.layout.block_count:
        raise UsageError(f"--io-size {wishes.io_size} is {io_blocks} blocks: take 1 to {setting.layout.block_count}")
    plan = Plan(setting.layout, setting.rng, setting.count, io_blocks)
    looks = wishes.workload in ("verify", "rand-verify")
    async with setting.subject.active() as device:
        if not looks and (wishes.verify_at_start or setting.log.doubtful.any()):
            await _verify(run, device)
        runner = setting.runner(device)
        runner.goes_on = row.goes_on
        async with trio.open_nursery() as nursery:
            if row.timed:
                nursery.start_soon(runner.sample, wishes.sample_s)
            with _progress(run, looks or wishes.workload == "fill", wishes.workload) as runner.progress:
                await runner.run(row.steps(plan), time_s=wishes.time_s if row.timed else None, finish=not row.abrupt)
            nursery.cancel_scope.cancel()
        run.samples = runner.samples
        if row.abrupt:
            _leave_at_once(run)
        if wishes.verify_at_end or (wishes.workload in ("fill", "yolo") and not wishes.skip_verify):
            await _verify(run, device)
    setting.log.commit_all()


def _leave_at_once(run: Run) -> None:
    """End the process with its connections: nothing is flushed and nobody is told, which is what is to be tested. The
    journal is mapped, so it keeps every count, and stays marked as in use."""
    _write_counts(run)
    run.report(None)
    sys.stderr.flush()
    os._exit(0)


async def _verify(run: Run, device: BlockDevice) -> None:
    """Check every block."""
    runner = run.setting.runner(device)
    with _progress(run, True, "Checking all blocks") as runner.progress:
        await runner.run(workloads.verify(run.setting.plan()))


def _progress(run: Run, whole_disk: bool, title: str) -> Progress:
    """A bar over the disk, where what is done goes over it once."""
    size = run.setting.layout.size_bytes
    return Progress(title, size, shown=whole_disk and not run.wishes.as_json)


def _write_counts(run: Run) -> None:
    if run.wishes.verify_out is not None:
        with new_file(run.wishes.verify_out, overwrite=True) as growing:
            growing.write_text(run.setting.log.dumps(), encoding="utf-8")


def contained(error: BaseException, wanted: type[E]) -> E | None:
    """An error of that kind among what ended a run, however deep in groups; ``None`` where there is none."""
    if isinstance(error, wanted):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next((found for each in error.exceptions if (found := contained(each, wanted)) is not None), None)
    return None


def innermost(error: BaseException) -> BaseException:
    """The one error inside groups of one; else the group."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _key(path: Path) -> str:
    from crucible_emu.cli.serve import read_key

    read_key(path)
    return path.read_text(encoding="ascii").strip()
