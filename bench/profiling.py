"""``python -m bench profile LINE``: where this disk's CPU time goes, layer by layer.

What it is for: one server is filled and runs one line three times: without a profile, with it, without it again. The
middle run gives the table, the flame graph and the records; the other two say what profiling itself costs, and are
printed beside it.

What it guarantees: the table's sum is the CPU time per operation that ``/proc`` and fio measured in the profiled run,
the flush that ends a line that writes included (as in every other command). What share of it belongs to which layer
comes from samples (:mod:`bench.sampled`); how many there were, and how much of the CPU time they account for, is said
with them. Everything that can be refused is refused before anything is measured.
"""

from __future__ import annotations

import json
import math
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from bench import fio, flame, layers, report, sampled
from bench.flush import FlushError, flush
from bench.lines import MIB, RUN, SECTOR, Line, choose
from bench.questions import Folder, SizeMib, refuse, require_fio
from bench.run import require_out
from bench.subjects import FORMS, OURS, SUBJECTS, Absent, Place, Server, Subject, find_program, running

SAMPLES = "samples.json"
WRITTEN_S = 60.0
"""How long the samples may take to be written."""
HEAVIEST = 20
SAMPLES_MIN = 1000
"""With so many, a layer with a share of 5 % is known to about a seventh of itself."""

Stacks = Sequence[tuple[layers.Stack, float]]


class ProfileError(Exception):
    """There is no profile; the message is the sentence that says why."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the line: operations per second, how many there were, CPU time of the server per operation and the
    part of it that was spent in the kernel (0 to 1)."""

    iops: float
    operations: int
    cpu_us: float
    kernel_share: float


@dataclass(frozen=True, slots=True)
class Profile:
    """What was found out. ``stacks`` have their CPU time in ns; ``before`` and ``after`` ran without the sampler."""

    subject: str
    line: str
    seconds: float
    size_mib: int
    machine: str
    before: Run
    profiled: Run
    after: Run
    samples: int
    stacks: Stacks

    @property
    def accounted(self) -> float:
        """How much of the CPU time that was measured the samples saw; 1 is all."""
        return sum(spent for _, spent in self.stacks) / 1000 / (self.profiled.cpu_us * self.profiled.operations)


# --- what it says (pure) ---


def heaviest(profile: Profile, count: int = HEAVIEST) -> list[tuple[str, str, float]]:
    """The functions that cost most themselves, calls into C included: name, layer, µs per operation."""
    own: dict[tuple[str, str], float] = {}
    total = 0.0
    for stack, spent in profile.stacks:
        called = stack[-1] if stack[-1].startswith("[") else ""
        name = " ".join(filter(None, (stack[-2], called))) if called and len(stack) > 1 else stack[-1]
        place = name, layers.layer_of(stack)
        own[place] = own.get(place, 0.0) + spent
        total += spent
    most = sorted(own.items(), key=lambda item: item[1], reverse=True)[:count]
    return [(name, layer, profile.profiled.cpu_us * spent / total) for (name, layer), spent in most]


def headline(profile: Profile) -> list[str]:
    """What was measured, and what profiling cost."""
    with_, before, after = profile.profiled, profile.before, profile.after
    without = math.sqrt(before.iops * after.iops)
    cpu_without = math.sqrt(before.cpu_us * after.cpu_us)
    sentences = [
        f"{profile.subject}, {profile.line}, {profile.size_mib} MiB, {profile.seconds:g} s: {with_.cpu_us:.2f} µs of "
        f"CPU time per operation, {with_.kernel_share:.0%} of it in the kernel.",
        f"With profiling {with_.iops:,.0f} operations a second and {with_.cpu_us:.2f} µs each; without, before and "
        f"after it, {before.iops:,.0f} and {after.iops:,.0f}, and {before.cpu_us:.2f} and {after.cpu_us:.2f} µs: "
        f"{with_.iops / without:.2f} of the rate, {with_.cpu_us / cpu_without:.2f} of the CPU time.",
        f"{profile.samples:,} samples account for {profile.accounted:.0%} of that CPU time.",
    ]
    if profile.samples < SAMPLES_MIN:
        enough_s = math.ceil(profile.seconds * SAMPLES_MIN / max(profile.samples, 1))
        sentences.append(f"That is few: small shares are chance. Measure for longer, --seconds {enough_s} or more.")
    return [*sentences, profile.machine[0].upper() + profile.machine[1:] + "."]


def markdown(profile: Profile) -> str:
    """The table of layers, with what would make each cheaper, and the heaviest functions."""
    costs = layers.table(profile.stacks, profile.profiled.cpu_us)
    lines = [f"# Where {profile.line} goes", "", *(f"{sentence}  " for sentence in headline(profile)), ""]
    lines += ["| layer | µs per operation | share | of it in other threads, µs | what would make it cheaper |"]
    lines += ["|---|---:|---:|---:|---|"]
    cheaper = {layer.name: layer.cheaper for layer in layers.LAYERS}
    for cost in costs:
        if cost.cpu_us:
            figures = f"{cost.cpu_us:.2f} | {cost.share:.1%} | {cost.in_threads_us:.2f}"
            lines.append(f"| {cost.layer} | {figures} | {cheaper[cost.layer]} |")
    threads_us = sum(cost.in_threads_us for cost in costs)
    lines.append(f"| **all** | **{sum(cost.cpu_us for cost in costs):.2f}** | **100.0%** | **{threads_us:.2f}** | |")
    lines += ["", "| function itself | layer | µs per operation |", "|---|---|---:|"]
    lines += [f"| `{name}` | {layer} | {cost_us:.2f} |" for name, layer, cost_us in heaviest(profile)]
    return "\n".join([*lines, ""])


def record(profile: Profile) -> dict[str, object]:
    """The same for a program."""
    known = asdict(profile)
    del known["stacks"]
    return known | {
        "accounted": round(profile.accounted, 4),
        "layers": [asdict(cost) for cost in layers.table(profile.stacks, profile.profiled.cpu_us)],
        "functions": [
            {"function": name, "layer": layer, "cpu_us": cost_us} for name, layer, cost_us in heaviest(profile)
        ],
    }


def folded(stacks: Stacks) -> str:
    """One stack to a line, from the outside in, with its CPU time in µs: what flame graph programs read."""
    return "".join(f"{';'.join(stack)} {round(spent / 1000)}\n" for stack, spent in stacks if spent >= 500)


# --- how it is found out ---


def interpreter_of(program: Path) -> str:
    """The Python that a command runs in. Raises :class:`ProfileError` where it is no Python program."""
    with open(program, "rb") as file:
        first = file.readline(4096)
    words = first[2:].decode(errors="replace").split() if first.startswith(b"#!") else []
    if not words or not Path(words[0]).name.startswith("python"):
        raise ProfileError(
            f"{program} is no Python program of an environment, so it cannot be sampled: run the bench with the Python "
            f"of the environment into which {OURS} is installed."
        )
    return words[0]


def observed(subject: Subject) -> Subject:
    """The same disk, started under the sampler. Raises :class:`ProfileError`."""
    found = find_program(OURS)
    if found is None:
        raise ProfileError(f"{OURS} is not installed (pip install -e .)")
    interpreter = interpreter_of(Path(found))

    def command(place: Place) -> list[str]:
        words = subject.command(place)
        return [interpreter, "-P", sampled.__file__, str(place.folder / SAMPLES), found, *words[1:]]

    return replace(subject, command=command)


def _kernel_seconds(server: Server) -> float:
    """CPU time that the server's process spent in the kernel so far."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[12]) / os.sysconf("SC_CLK_TCK")


def measure(line: Line, server: Server, seconds: float, tell: Callable[[int], None] = lambda number: None) -> Run:
    """Run the line, and flush what it wrote. ``tell`` is told to begin and to end sampling. Raises
    :class:`ProfileError`, :class:`~bench.fio.FioError` or :class:`~bench.flush.FlushError`."""
    before, kernel_before = server.cpu_seconds(), _kernel_seconds(server)
    tell(signal.SIGUSR1)
    achieved = fio.measure(line, server.uri, server.place.size_bytes, seconds, server.place.folder)
    if line.writes:
        flush(server.place.socket)
    after, kernel = server.cpu_seconds(), _kernel_seconds(server) - kernel_before
    tell(signal.SIGUSR2)
    if before is None or after is None or after <= before:
        raise ProfileError("/proc does not tell the server's CPU time: there is nothing to share out.")
    spent = after - before
    return Run(achieved.iops, achieved.operations, spent * 1e6 / achieved.operations, min(1.0, kernel / spent))


def read_samples(server: Server) -> tuple[int, Stacks]:
    """What the sampler wrote at its end: how many samples, and the stacks. Raises :class:`ProfileError`."""
    path, deadline = server.place.folder / SAMPLES, time.monotonic() + WRITTEN_S
    while not path.exists():
        if server.death() is not None or time.monotonic() > deadline:
            raise ProfileError(f"the samples were not written: {server.death() or server.last_words()}")
        time.sleep(0.01)
    document = json.loads(path.read_text(encoding="utf-8"))
    return document["samples"], [(tuple(stack), spent) for stack, spent in document["stacks"]]


def run(subject: Subject, line: Line, seconds: float, size_mib: int, folder: Path, machine: str) -> Profile:
    """Serve the disk and measure it three times, the second time under the sampler. Raises as :func:`measure`, and
    :class:`~bench.subjects.Absent` where the disk cannot be served."""
    with running(observed(subject), folder, size_mib * MIB) as server:
        before = measure(line, server, seconds)
        profiled = measure(line, server, seconds, server.process.send_signal)
        samples, stacks = read_samples(server)
        after = measure(line, server, seconds)
    return Profile(subject.name, line.name, seconds, size_mib, machine, before, profiled, after, samples, stacks)


def write(profile: Profile, out: Path) -> None:
    """``profile.json``, ``profile.md``, ``flame.svg`` and ``stacks.txt`` into the folder ``out``."""
    cpu_us = profile.profiled.cpu_us
    costs = {cost.layer: cost.cpu_us for cost in layers.table(profile.stacks, cpu_us)}
    title = f"{profile.subject}, {profile.line}: {cpu_us:.2f} µs of CPU time per operation"
    (out / "profile.json").write_text(json.dumps(record(profile), indent=2) + "\n", encoding="utf-8")
    (out / "profile.md").write_text(markdown(profile), encoding="utf-8")
    (out / "flame.svg").write_text(flame.svg(profile.stacks, cpu_us, title, costs), encoding="utf-8")
    (out / "stacks.txt").write_text(folded(profile.stacks), encoding="utf-8")


# --- the command ---

_ONE_PROCESS = (OURS, f"{OURS}-encrypted", f"{OURS}-512")
DISKS = {subject.name: subject for subject in (*SUBJECTS, *FORMS) if subject.name in _ONE_PROCESS}
"""The forms of this disk that are one process."""


def profile(
    line: Annotated[str, typer.Argument(metavar="LINE", help="The line to run, such as randwrite-4k-qd16.")],
    out: Annotated[Path, typer.Option(help="The folder for the table, the flame graph and the records.")],
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each of the three runs measures.")] = 10.0,
    size_mib: SizeMib = 256,
    folder: Folder = None,
    disk: Annotated[str, typer.Option(help="Which form of this disk: -encrypted and -512 are others.")] = OURS,
) -> None:
    """Say where this disk's CPU time goes, layer by layer, with a flame graph."""
    if disk not in DISKS:
        refuse(f"--disk does not know '{disk}'; there are {', '.join(DISKS)}.")
    try:
        (chosen,) = choose([line], RUN, SECTOR)
    except ValueError as problem:
        refuse(str(problem) if str(problem).startswith("No line") else f"'{line}' names several lines: name one.")
    if not DISKS[disk].serves(chosen):
        refuse(f"{disk} does not serve blocks of {chosen.block_bytes} bytes: take --disk {OURS}-512.")
    require_fio()
    require_out(out)
    machine = report.conditions(os.getloadavg()[0], os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=folder) as home:
        try:
            found = run(DISKS[disk], chosen, seconds, size_mib, Path(home), machine)
            write(found, out)
        except (ProfileError, Absent, fio.FioError, FlushError, ValueError) as problem:
            typer.echo(f"bench: {problem}", err=True)
            raise typer.Exit(1) from None
    typer.echo(markdown(found))
    typer.echo(f"{out / 'flame.svg'} shows it function by function; profile.json and stacks.txt are for programs.")
