"""The command ``nexus``.

Until the control plane has parts of its own, it says its version and what it will be, and refuses anything else in
one sentence: a command that accepted work and did none would be worse than no command.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from nexus import __version__

HELP = (
    "nexus will be the control plane: it will keep disks, snapshots and images, and replace a region or a region"
    " snapshot while a disk is in use or while somebody deletes it.\n"
    "This version of the distribution holds the data plane only; its command is crucible-emu."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the return value is its exit code. Also the entry point of the console script."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    match given:
        case ["--version"]:
            print(f"nexus {__version__}")
        case ["--help"] | ["-h"]:
            print(f"usage: nexus [--help] [--version]\n\n{HELP}")
        case []:
            print("nexus: say what to do; this version knows --help and --version only.", file=sys.stderr)
            return 2
        case _:
            print(
                f"nexus: '{' '.join(given)}' is not known; this version knows --help and --version only.",
                file=sys.stderr,
            )
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
