"""From a command to a supervisor in the background.

What it is for: ``rack up`` takes the rack's lock, forks the supervisor, and waits for its word that the rack is ready;
the supervisor imports all that services need, forks the fork server, and only then starts its event loop.

What it guarantees: the order in which that happens. Both forks are made by a process with one thread and without an
event loop (*safety*: :func:`~.forkserver.require_one_thread`). Ports are in the state file before a service is started
with them. Whatever keeps the rack from becoming ready is one sentence for who started it, and nothing of the rack runs
when they read it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from crucible_emu import logs
from crucible_emu.errors import UsageError
from crucible_emu.rack import forkserver, plan, presence, state_file
from crucible_emu.rack.document import RackFile
from crucible_emu.rack.forkserver import Entry
from crucible_emu.rack.reservations import Reservations, ports_of_clients
from crucible_emu.rack.state import RackState
from crucible_emu.rack.supervisor import Supervisor

SUPERVISOR_LOG = "supervisor"
WORD_BYTES_MAX = 4 << 20

Ready = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Programs:
    """What services run: ``entry`` is the main function of their command; ``modules`` are imported once for all."""

    entry: Entry
    modules: Sequence[str]

    def load(self) -> None:
        """Import it all. Linear algebra would start threads of its own, which no service needs and no fork allows."""
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(name, "1")
        for module in self.modules:
            importlib.import_module(module)


def in_background(root: Path, rack: RackFile, programs: Programs, lock: int, *, new_ports: bool) -> dict[str, Any]:
    """Start the rack and return its description when it is ready. ``lock`` is given away.

    Raises :class:`UsageError` with the one sentence that says why it did not become ready.
    """
    forkserver.require_one_thread()
    word, their_word = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        forkserver.as_child(lambda: _be_supervisor(root, rack, programs, lock, their_word, new_ports=new_ports))
    os.close(their_word)
    os.close(lock)
    try:
        with open(word, "rb") as file:
            said = file.read(WORD_BYTES_MAX)
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)  # our own child, which nobody has waited for
        os.waitpid(pid, 0)
        raise
    if not said:
        os.waitpid(pid, 0)
        raise UsageError(f"the supervisor ended at once: look into {plan.log_path(root, SUPERVISOR_LOG)}")
    document = json.loads(said)
    if "error" in document:
        os.waitpid(pid, 0)
        raise UsageError(document["error"])
    found: dict[str, Any] = document["rack"]
    return found


def _be_supervisor(root: Path, rack: RackFile, programs: Programs, lock: int, word: int, *, new_ports: bool) -> None:
    """In the forked child: supervise, and say one word about how it went."""
    os.setsid()
    forkserver.prctl(forkserver.PR_SET_NAME, b"rack-supervisor")
    _redirect(root, (lock, word))

    def ready(document: dict[str, Any]) -> None:
        _say(word, {"rack": document})

    try:
        supervise(root, rack, programs, lock, ready, new_ports=new_ports)
    except UsageError as error:
        _say(word, {"error": str(error)})
        raise SystemExit(1) from None
    except OSError as error:
        _say(word, {"error": f"the rack cannot be started: {error}"})
        raise


def _redirect(root: Path, kept: Sequence[int]) -> None:
    """Nothing from the terminal, everything to the log; no descriptor of whoever started it but those ``kept``."""
    path = plan.log_path(root, SUPERVISOR_LOG)
    path.parent.mkdir(exist_ok=True)
    forkserver.prepare_log(path)
    forkserver.stand_on(os.open(os.devnull, os.O_RDONLY), *[forkserver.open_log(path)] * 2)
    forkserver.keep_only(kept)


def _say(word: int, document: dict[str, Any]) -> None:
    """Once; whoever waits for it reads to the end of the pipe."""
    try:
        with open(word, "wb") as file:
            file.write(json.dumps(document).encode())
    except BrokenPipeError:
        pass  # nobody waits any more


def supervise(
    root: Path,
    rack: RackFile,
    programs: Programs,
    lock: int,
    ready: Ready,
    *,
    new_ports: bool = False,
    log_level: str = "info",
) -> None:
    """Run the rack in this process until it is told to end. ``lock`` is the rack's, and stays open.

    Raises :class:`UsageError` where it does not become ready; nothing of it runs then.
    """
    planned = plan.services(rack, root)
    for directory in (plan.log_path(root, "").parent, *(each.directory for each in planned if each.directory)):
        directory.mkdir(parents=True, exist_ok=True)
    with Reservations(rack.address) as reservations:
        kept = give_ports(root, rack, reservations, new_ports=new_ports)
        programs.load()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        forks = _start_fork_server(theirs, lock, programs.entry)
        theirs.close()
        logs.configure(level=os.environ.get(logs.LEVEL_VARIABLE) or log_level)
        with ours:
            supervisor = Supervisor(root, rack, kept, planned, ours)
            try:
                trio.run(supervisor.run, ready)
            finally:
                ours.close()
                os.waitpid(forks, 0)
        presence.sweep(root)


def _start_fork_server(requests: socket.socket, lock: int, entry: Entry) -> int:
    """Fork it; its process id. It keeps the lock, and nothing else of ours."""
    forkserver.require_one_thread()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid

    def serve() -> None:
        forkserver.keep_only((requests.fileno(), lock))
        forkserver.ForkServer(requests, entry).run()

    forkserver.as_child(serve)


def give_ports(root: Path, rack: RackFile, reservations: Reservations, *, new_ports: bool = False) -> RackState:
    """Give every service the ports that it has not, hold all of them, and save. Raises :class:`UsageError`."""
    found = state_file.load(root)
    planned = plan.services(rack, root)
    known = {name for each in planned for name in each.port_names}
    if new_ports:
        found.http_ports.clear()
    refused: frozenset[int] = frozenset()
    while True:  # each time more hundreds are refused, and there are not many
        pools = plan.wanted_pools(rack, planned, found, refused, ports_of_clients())
        taken = reservations.claim({hundred for pool in pools.values() for hundred in pool.hundreds})
        if not taken:
            break
        mine = {name for name, pool in pools.items() if name in found.pools and pool.hundreds & taken}
        if mine:
            raise UsageError(
                f"the Downstairs ports of {min(mine)} belong to another rack that is running: end that one first"
            )
        refused |= taken
    found.pools.update(pools)
    for name, port in found.http_ports.items():
        if name in known:
            reservations.hold(port, name)
    for name in (name for each in planned for name in each.port_names):
        if name not in found.http_ports:
            found.http_ports[name] = reservations.take(lambda port: any(port in pool for pool in pools.values()))
    found.killed &= {sled.name for sled in rack.here}
    state_file.save(root, found)
    return found
