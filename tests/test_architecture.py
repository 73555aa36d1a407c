"""The laws of the house that a program can check: who imports whom, how long a file is, what may not stand in it.

``docs/architecture.md`` says why each law is there. A new package fails here until the table gives it a floor.
"""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("crucible_emu", "nexus", "bench")
LINES_MAX = 600

FLOORS = (
    {
        *("errors", "geometry", "blockio", "blockio_memory", "integrity"),
        *("slab", "boringssl", "aead", "encryption", "cipher_process"),
        *("logs", "statistics", "http_errors", "http_body", "descriptors"),
    },
    {"wire", "region", "service"},
    {"downstairs", "supervisor"},
    {"upstairs"},
    {"volume"},
    {"nbd", "control", "exercise"},
    {"agent", "pantry", "host"},
    {"client"},
    {"rack"},
    {"sim"},
    {"cli"},
    {"__main__"},
)
"""The parts of ``crucible_emu`` from the ground up. A part imports from floors below its own; on the ground floor
also from its neighbours, for there are no circles (checked on its own)."""
GROUND = FLOORS[0]
FLOOR_OF = {part: number for number, parts in enumerate(FLOORS) for part in parts}
ABOVE_ALL = len(FLOORS)

NEXUS_FLOORS = (
    {"saga"},
    {"db"},
    {"volumes", "placement"},
    {"services"},
    {"objects"},
    {"verification"},
    {"replacement"},
    {"sagas"},
    {"tasks"},
    {"checking"},
    {"running"},
    {"api"},
    {"client"},
    {"explore"},
    {"cli"},
    {"__main__"},
)
"""The same for ``nexus``."""
FLOORS_OF_NEXUS = {part: number for number, parts in enumerate(NEXUS_FLOORS) for part in parts}

NEXUS_MAY_KNOW = {
    *("crucible_emu", "crucible_emu.errors", "crucible_emu.logs", "crucible_emu.volume"),
    *("crucible_emu.client", "crucible_emu.service", "crucible_emu.agent", "crucible_emu.pantry", "crucible_emu.host"),
}
"""What the control plane may know of the data plane; the rest of their acquaintance is HTTP."""
NEXUS_COMMANDS_MAY_KNOW = NEXUS_MAY_KNOW | {"crucible_emu.cli"}
"""Its commands look and speak like those of the data plane: sizes, progress, the ready line, how a failure looks."""
NEXUS_EXPLORER_MAY_KNOW = NEXUS_MAY_KNOW | {"crucible_emu.sim"}
"""The explorer runs Trio as simulations do."""

COUNTING = {
    *("bench.asked", "bench.control_plane", "bench.crowd", "bench.replacement"),
    *("bench.many_disks", "bench.region_rates", "bench.saga_rate"),
}
"""The parts of the bench that look at what happens inside, or put it together; the rest of it are clients."""

DECIDING = tuple(
    f"crucible_emu.{name}"
    for name in (
        *("wire", "service", "downstairs", "supervisor", "upstairs", "volume", "nbd", "control", "exercise"),
        *("agent", "pantry", "host", "client", "rack"),
    )
)
"""Packages whose modules are pure cores, but for those in DRIVERS."""
DRIVERS = {
    *(
        f"crucible_emu.downstairs.{name}"
        for name in ("connection", "listening", "local", "runner", "server", "settling", "together", "transport")
    ),
    *(
        f"crucible_emu.downstairs.{name}"
        for name in ("network_clone", "peer_memory", "read_grants_service", "repair_client", "repair_connection")
    ),
    *(
        f"crucible_emu.upstairs.{name}"
        for name in (
            "driver",
            "gathered_read",
            "group_commit",
            "guest",
            "healing",
            "local_link",
            "single_reads",
            "single_writes",
        )
    ),
    "crucible_emu.upstairs.group_commit",
    *(f"crucible_emu.downstairs.{name}" for name in ("repair_http", "repair_service")),
    *(
        f"crucible_emu.upstairs.{name}"
        for name in (
            "asking",
            "group_commit",
            "reads_at_hand",
            "sealed_writes",
            "tcp_link",
            "writes_by_reference",
            "zeroing",
        )
    ),
    *(
        f"crucible_emu.volume.{name}"
        for name in ("attach", "backend", "construction", "image", "in_service", "kept_running", "local_disk")
    ),
    *(
        f"crucible_emu.volume.{name}"
        for name in ("local_file", "pseudo_file", "region_set", "region_set_info", "scrub", "url", "volume")
    ),
    *(f"crucible_emu.nbd.{name}" for name in ("connection", "listeners", "server", "transport")),
    *(f"crucible_emu.service.{name}" for name in ("application", "serving")),
    *(f"crucible_emu.host.{name}" for name in ("directory", "disk", "host", "machine", "operations", "source")),
    *(f"crucible_emu.agent.{name}" for name in ("agent", "api", "datasets", "digesting", "services", "store")),
    *(
        f"crucible_emu.client.{name}"
        for name in ("agent", "file_pieces", "host", "nbd", "pantry", "persistence", "regions", "repair", "service")
    ),
    *(f"crucible_emu.client.{name}" for name in ("aio", "sync")),
    *(f"crucible_emu.client.aio.{name}" for name in ("copying", "device", "disk", "link", "nbd", "opening", "pantry")),
    *(f"crucible_emu.control.{name}" for name in ("metrics", "notifier", "observation", "server")),
    *(f"crucible_emu.supervisor.{name}" for name in ("control", "driver", "process")),
    *(f"crucible_emu.pantry.{name}" for name in ("driver", "fetching", "operations", "work")),
    *(f"crucible_emu.exercise.{name}" for name in ("control", "disk", "journal", "runner", "scenarios")),
    *(f"crucible_emu.rack.{name}" for name in ("asking", "control", "forkserver", "launch", "presence", "reach")),
    *(f"crucible_emu.rack.{name}" for name in ("reservations", "state_file", "supervisor")),
}
OUTSIDE_WORLD = {
    *("trio", "asyncio", "anyio", "threading", "subprocess", "socket", "select", "os", "time", "secrets"),
    *("httpx2", "h11", "starlette", "hypercorn"),
}
"""What a core must not know: the loop, the operating system, the clock, the network."""

VAGUE_NAMES = {"utils", "util", "helpers", "helper", "manager", "misc", "common"}


def sources(*tops: str) -> list[Path]:
    return sorted(path for top in tops for path in (ROOT / top).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def annotations_only(tree: ast.AST) -> set[int]:
    """The lines under ``if TYPE_CHECKING:``; an import there is for the checker and never runs."""
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in node.body
        for line in range(inner.lineno, (inner.end_lineno or inner.lineno) + 1)
    }


def imports(path: Path, known: set[str]) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, wherever in it the import stands: line, full name. ``from package import x``
    names the module ``package.x`` where there is one."""
    own = module_name(path)
    package = own if path.name == "__init__.py" else own.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield node.lineno, name.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for name in node.names:
                full = f"{base}.{name.name}"
                yield node.lineno, full if full in known else base


KNOWN = {module_name(path) for path in sources(*PACKAGES)}
IMPORTS = {path: list(imports(path, KNOWN)) for path in sources(*PACKAGES)}


def at(path: Path, line: int, sentence: str) -> str:
    return f"{path.relative_to(ROOT)}:{line}: {sentence}"


def test_every_part_has_a_floor() -> None:
    parts = {name.split(".")[1] for name in KNOWN if name.startswith("crucible_emu.")}
    assert parts <= FLOOR_OF.keys(), "say in FLOORS where the new part stands"
    parts = {name.split(".")[1] for name in KNOWN if name.startswith("nexus.")}
    assert parts <= FLOORS_OF_NEXUS.keys(), "say in NEXUS_FLOORS where the new part stands"


def test_imports_go_down_only() -> None:
    wrong = []
    for path, found in IMPORTS.items():
        own = module_name(path).split(".")
        if own[0] not in ("crucible_emu", "nexus") or len(own) == 1:
            continue
        floors = FLOOR_OF if own[0] == "crucible_emu" else FLOORS_OF_NEXUS
        for line, name in found:
            other = name.split(".")
            if other[0] == own[0] and len(other) > 1 and other[1] != own[1]:
                both_ground = own[0] == "crucible_emu" and own[1] in GROUND and other[1] in GROUND
                if floors.get(other[1], ABOVE_ALL) >= floors.get(own[1], ABOVE_ALL) and not both_ground:
                    wrong.append(at(path, line, f"{own[1]} must not import {other[1]}"))
    assert wrong == []


def test_data_plane_control_plane_and_bench_are_apart() -> None:
    wrong = []
    for path, found in IMPORTS.items():
        own = module_name(path).split(".")[0]
        for line, name in found:
            other = name.split(".")[0]
            if other not in PACKAGES or other == own:
                continue
            if module_name(path) in COUNTING and other in ("nexus", "crucible_emu"):
                continue
            allowed = NEXUS_COMMANDS_MAY_KNOW if module_name(path).startswith("nexus.cli") else NEXUS_MAY_KNOW
            allowed = NEXUS_EXPLORER_MAY_KNOW if module_name(path).startswith("nexus.explore") else allowed
            known = own == "nexus" and any(name == may or name.startswith(f"{may}.") for may in allowed - {other})
            if not known and (own, name) != ("nexus", "crucible_emu"):
                wrong.append(at(path, line, f"{own} must not import {name}"))
    assert wrong == []


def test_cores_know_nothing_of_the_outside_world() -> None:
    wrong = []
    for path, found in IMPORTS.items():
        own = module_name(path)
        if own.startswith(tuple(f"{package}." for package in DECIDING)) and own not in DRIVERS:
            wrong += [
                at(path, line, f"a pure core must not import {name}; if it is a driver, list it in DRIVERS")
                for line, name in found
                if name.split(".")[0] in OUTSIDE_WORLD or name in DRIVERS
            ]
    assert wrong == []


def test_no_circle_of_modules() -> None:
    """A package's ``__init__`` only re-exports, so importing it from within its own package would be a circle too."""
    graph = {}
    for path, found in IMPORTS.items():
        silent = annotations_only(ast.parse(path.read_text()))
        graph[module_name(path)] = {name for line, name in found if name in KNOWN and line not in silent}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as circle:
        pytest.fail(f"modules import each other in a circle: {' -> '.join(circle.args[1])}")


def test_every_module_says_what_it_is_for() -> None:
    silent = [str(path.relative_to(ROOT)) for path in IMPORTS if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_no_file_outgrows_its_room() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in IMPORTS}
    assert {path: length for path, length in lengths.items() if length > LINES_MAX} == {}


def test_names_say_something() -> None:
    assert [name for name in sorted(KNOWN) if VAGUE_NAMES & set(name.split("."))] == []


MACHINE_PATH = re.compile(r"(?<![\w.})~])/(?:work|root|home|Users|tmp/venv)/")
UNFINISHED = re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME)\b|raise Not" + r"ImplementedError")
WRITTEN = {".py", ".md", ".toml", ".sh", ".json", ".cfg", ".txt", ".yml", ".yaml"}


def written_files() -> list[Path]:
    """Every text file of the tree that somebody wrote; caches and build results are not looked at."""
    tops = [path for path in ROOT.iterdir() if path.name[0] != "." and not path.name.endswith((".egg-info", "build"))]
    files = [path for top in tops for path in ([top] if top.is_file() else top.rglob("*"))]
    return sorted([path for path in files if path.is_file() and path.suffix in WRITTEN] + [ROOT / ".ci" / "run"])


@pytest.mark.parametrize(("pattern", "what"), [(MACHINE_PATH, "a machine's path"), (UNFINISHED, "unfinished work")])
def test_nothing_of_the_workshop_is_left_in_the_tree(pattern: re.Pattern[str], what: str) -> None:
    found = [
        at(path, number, f"{what}: {line.strip()[:80]}")
        for path in written_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert found == []


def test_patterns_find_what_they_are_for() -> None:
    root = "/" + "work/shared"
    assert MACHINE_PATH.search(f"read {root}/spec")
    assert not MACHINE_PATH.search("crucible_emu/downstairs/work/x")
    assert UNFINISHED.search("# TO" + "DO: later")
    assert not UNFINISHED.search("# todolist")


def test_programs_are_asked_for_in_one_place() -> None:
    """A test that looks for a program itself and skips would skip in CI as well."""
    search = "shutil." + "which"
    found = [path.name for path in sources("tests") if search in path.read_text() and path.name != "real_clients.py"]
    assert found == []


def test_long_runs_are_documented_and_exist() -> None:
    """Every program beside the tests that says how it is called stands in ``docs/testing.md``; what stands there is
    there. (One that does not say it is started by a test.)"""
    text = (ROOT / "docs" / "testing.md").read_text()
    programs = [path for path in sources("tests") if f"python {path.relative_to(ROOT)}" in path.read_text()]
    named = set(re.findall(r"(?:tests|docs)/[\w/]+\.py", text))
    assert {str(path.relative_to(ROOT)) for path in programs} <= named
    assert [path for path in named if not (ROOT / path).is_file()] == []
