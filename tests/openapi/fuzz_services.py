"""Requests of every kind against every HTTP service, each answer held to the real program's OpenAPI document.

The suite runs a slice. The full run, by hand, from the project's folder (some minutes)::

    python tests/openapi/fuzz_services.py --examples 2000 [--service NAME]... [--seed N]

It reports the statuses seen for each operation, and every defect with a request that shows it; exit code 1 where there
is one. A defect is a 500 that is not meant, an answer that the document does not allow, no answer, something accepted
that must be refused, an error in the log.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import openapi_neighbours  # noqa: F401  opens the ways to the neighbours
from fuzz_judge import Report, Run, running
from fuzz_nexus import NEXUS_WORLDS
from fuzz_sled import SLED_WORLDS
from fuzz_worlds import WORLDS as DISK_WORLDS

EXAMPLES = 2_000
WORLDS = {**DISK_WORLDS, **SLED_WORLDS, **NEXUS_WORLDS}


def fuzz(service: str, examples: int, seed: int, folder: Path) -> Report:
    """``examples`` requests against ``service``, whose state goes below ``folder``."""
    with running(WORLDS[service], folder) as world:
        return Run(service, world).fuzz(examples, seed)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Hold the HTTP services to the real OpenAPI documents.")
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="requests for each service")
    parser.add_argument("--service", action="append", choices=sorted(WORLDS), help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    logging.disable(logging.WARNING)  # errors are heard; what is refused is no news here
    wrong = 0
    try:
        for service in chosen.service or WORLDS:
            with tempfile.TemporaryDirectory() as folder:
                report = fuzz(service, chosen.examples, chosen.seed, Path(folder))
            print("\n".join(report.lines()), flush=True)
            wrong += len(report.defects)
    finally:
        logging.disable(logging.NOTSET)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
