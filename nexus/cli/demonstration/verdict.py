"""What the demonstration proves, and how: from what was measured to a verdict. Pure.

What it guarantees: nothing is assumed. Each :class:`Claim` is a sentence and whether what was measured bears it out;
the demonstration has succeeded if all are. What was not measured bears nothing out: a missing digest is no digest, and
no survivors at all are no proof.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

COPIES = 3


@dataclass(frozen=True, slots=True)
class Survivor:
    """Something that was not deleted. All digests are BLAKE3 of all its bytes.

    ``expected``: of what it has to hold: what the guest knows that it wrote, or the image from which it all began.
    ``read``: as a client read it through NBD; ``None`` for what nobody attaches. ``verified``: as Nexus read it through
    an Upstairs of its own, once all copies had been compared; ``findings``: what that found wrong.
    ``good_copies``: for each region set in it, how many of its members are on disks in service, on sleds of their own,
    and created at their agents.
    """

    name: str
    kind: str
    expected: str
    read: str | None
    verified: str | None
    copies_compared: int
    findings: tuple[str, ...]
    good_copies: tuple[int, ...]

    @property
    def intact(self) -> bool:
        """Every byte is what it has to be."""
        return self.verified == self.expected and self.read in (None, self.expected) and not self.findings

    @property
    def whole(self) -> bool:
        """Three good copies of everything."""
        return bool(self.good_copies) and set(self.good_copies) == {COPIES}


@dataclass(frozen=True, slots=True)
class Guest:
    """What an NBD client did. ``failures``: requests that were answered with an error, or not at all. ``differences``:
    reads in between that did not tell what was written. ``wrote_meanwhile``: writes from the death of the sled until
    the last replacement was complete."""

    name: str
    writes: int
    bytes_written: int
    reads: int
    flushes: int
    wrote_meanwhile: int
    failures: tuple[str, ...] = ()
    differences: int = 0


@dataclass(frozen=True, slots=True)
class Measured:
    """All of it. ``image``: BLAKE3 of the image from which all began. ``deleted``: what was deleted, with the states of
    the replacements that were open just then. ``replacements``: how many there were of each kind; ``not_complete``: how
    many of them are open at the end. ``lost``: copies on the dead sled that have no successor. ``findings``: of ``nexus
    check``, with all survivors there and again with everything deleted. ``bytes_left``: reserved on living disks when
    everything is deleted."""

    image: str
    sled: str
    survivors: tuple[Survivor, ...] = ()
    guests: tuple[Guest, ...] = ()
    deleted: dict[str, tuple[str, ...]] = field(default_factory=dict)
    replacements: dict[str, int] = field(default_factory=dict)
    not_complete: int = 0
    lost: int = 0
    findings: tuple[str, ...] = ()
    findings_at_the_end: tuple[str, ...] = ()
    bytes_left: int | None = None


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence, and whether it is borne out. ``name``: a word for machines."""

    name: str
    sentence: str
    holds: bool


def claims(measured: Measured) -> tuple[Claim, ...]:
    """What is claimed, in the order in which it is told."""
    survivors, guests = measured.survivors, measured.guests
    total, sets = sum(measured.replacements.values()), [each for one in survivors for each in one.good_copies]
    meanwhile = sum(each.wrote_meanwhile for each in guests)
    in_the_middle = bool(measured.deleted) and all(
        any(state not in ("requested", "complete") for state in states) for states in measured.deleted.values()
    )
    return (
        Claim(
            "bytes",
            f"every byte of {len(survivors)} survivors is what it has to be",
            bool(survivors) and all(each.intact for each in survivors),
        ),
        Claim(
            "guests",
            f"no request of {len(guests)} guests failed, and none read anything but what it wrote",
            bool(guests) and not any(each.failures or each.differences for each in guests),
        ),
        Claim(
            "writing",
            f"they wrote {meanwhile} times while the dead sled was replaced",
            bool(guests) and all(each.wrote_meanwhile for each in guests),
        ),
        Claim(
            "deleted",
            f"{' and '.join(measured.deleted) or 'nothing'} went in the middle of replacements",
            in_the_middle,
        ),
        Claim(
            "replaced",
            f"all {total} replacements are complete, and nothing that was lost is without a successor",
            total > 0 and measured.not_complete == 0 and measured.lost == 0,
        ),
        Claim(
            "copies",
            f"all {len(sets)} region sets have three good copies",
            bool(survivors) and all(each.whole for each in survivors),
        ),
        Claim(
            "nothing_left",
            "nexus check finds nothing, and nothing is left when all is deleted",
            not measured.findings and not measured.findings_at_the_end and measured.bytes_left == 0,
        ),
    )


def ok(found: Iterable[Claim]) -> bool:
    """Whether all hold."""
    return all(each.holds for each in found)


def as_json(measured: Measured, seconds: float) -> dict[str, Any]:
    """For machines: ``ok``, each claim, and all that they are computed from."""
    found = claims(measured)
    told = {"ok": ok(found), "claims": {each.name: each.holds for each in found}}
    return told | asdict(measured) | {"seconds": round(seconds, 3)}
