"""The table of safeguards: what breaks without each, and the shortest story that shows it."""

from __future__ import annotations

from collections.abc import Iterator

from nexus.explore import campaign, plan
from nexus.explore.campaign import Finding
from nexus.explore.cases import Case, parse
from nexus.explore.removal import Removal
from nexus.explore.results import kind_of
from nexus.explore.scenarios import SCENARIOS
from nexus.explore.without import removals

HEAD = """# Safeguards, taken out one by one

Written by `nexus explore --safeguards docs/safeguards.md`: each safeguard is replaced in one place by nothing, and the
cases of the scenarios in which it matters run until one finds something. Numbers are those of the specification (R:
races, W: what the real one gets wrong). *Without it* is what the specification predicts, *found* the first violation.

"""


def safeguards_table(processes: int, every: int) -> tuple[str, list[str]]:
    """The table as Markdown, and the safeguards whose removal nothing detected although it should."""
    rows, undetected = [], []
    for safeguard, removal in removals().items():
        finding = shortest(removal, processes, every)
        if finding is None and not removal.covered:
            undetected.append(safeguard)
        rows.append(_row(removal, finding))
    return HEAD + "\n".join(rows), undetected


def cases_of(removal: Removal) -> Iterator[Case]:
    """What is predicted first, then everything of the scenarios. A row that names none says why nothing is found."""
    yield from map(parse, removal.predicted)
    yield from _of_scenarios(removal)


def _of_scenarios(removal: Removal) -> Iterator[Case]:
    for name in removal.scenarios:
        yield from plan.one(SCENARIOS[name])


def shortest(removal: Removal, processes: int, every: int) -> Finding | None:
    """The first case that finds something without the safeguard, shrunk."""
    predicted = campaign.run(
        map(parse, removal.predicted), processes=1, without=removal.safeguard, stop_at_first=True
    ).findings
    if predicted:
        return predicted[0]
    cases = plan.every_nth(_of_scenarios(removal), every)
    report = campaign.run(cases, processes=processes, without=removal.safeguard, stop_at_first=True)
    return report.findings[0] if report.findings else None


def _row(removal: Removal, finding: Finding | None) -> str:
    lines = [
        f"## {removal.safeguard}: {removal.what}\n",
        f"Place: `{'`, `'.join(removal.where)}`\n",
        f"Without it: {removal.breaks}.\n",
    ]
    if finding is None:
        lines.append(f"Nothing breaks: {removal.covered}.\n" if removal.covered else "Found: nothing.\n")
        return "\n".join(lines)
    story = "\n".join(finding.story) or "(nothing interferes)"
    command = f'nexus explore --without "{removal.safeguard}" --replay "{finding.case}"'
    found = kind_of(finding.violation)
    lines.append(f"Found: {found}\n\n```text\n{kind_of(story)}\n```\n\n```bash\n{command}\n```\n")
    return "\n".join(lines)
