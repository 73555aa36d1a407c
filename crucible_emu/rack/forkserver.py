"""The process that has everything imported, and forks a service for each request.

What it is for: a service is a Python program that imports for a second before its first line runs; twelve of them on
two cores would take ten seconds. Here one process, with one thread and without an event loop, imports it all once; a
service is a fork of it, which takes milliseconds, and runs the same command as a person would.

It is the parent of all services, and their only one who waits for them. Hence what it guarantees:

* A signal goes to the service that is meant and never to a stranger with its number: a number is free for others only
  when its parent has waited for it, and the parent is who sends.
* ``ended`` is reported when nothing of a service is left. What a dead service had started itself (Downstairs processes
  of an agent) becomes a child of this process (``PR_SET_CHILD_SUBREAPER``) and is killed; a service that ends in order
  has ended them before.
* No service outlives the supervisor. When that is gone, by SIGKILL too, the services see the end of their standard
  input, whose other end only the supervisor had, and end in order; this process sees the end of its socket, waits
  :data:`GRACE_S` for them and kills what is left. When this process is gone, the kernel kills the services
  (``PR_SET_PDEATHSIG``; a parent that died before that was set is seen by its number having changed).
* The rack's lock, which is inherited from whoever started the supervisor, is held until then: whoever gets the lock
  finds nothing running.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

GRACE_S = 15.0
"""How long services get to end when the supervisor is gone: a disk is flushed, blocks are moved into their files."""
MESSAGE_BYTES_MAX = 64 * 1024
LOG_BYTES_MAX = 4 << 20

PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36
HELD_BACK = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Entry = Callable[[list[str]], object]
"""What a service runs: the main function of the command, which leaves by :class:`SystemExit`."""


def prctl(option: int, argument: int | bytes) -> None:
    """Raises :class:`OSError`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def require_one_thread() -> None:
    """*Safety*: a fork takes one thread along, and whatever lock another one held stays locked in the child."""
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise RuntimeError(f"{threads} threads run where a process is to be forked")


def keep_only(descriptors: Iterable[int]) -> None:
    """Close every descriptor of this process but the standard ones and ``descriptors``."""
    first = 3
    for descriptor in sorted(descriptors):
        os.closerange(first, descriptor)
        first = descriptor + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def stand_on(standard_input: int, output: int, log: int) -> None:
    """Make these the standard descriptors, for Python too."""
    for descriptor, number in zip((standard_input, output, log), range(3)):
        os.dup2(descriptor, number)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115


def open_log(path: str | Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def children() -> set[int]:
    """The processes whose parent this one is, those that have ended and were not waited for included."""
    own, found = os.getpid(), set()
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                # The name, in parentheses, may hold anything; state and parent follow it.
                parent = int(Path("/proc", entry, "stat").read_bytes().rpartition(b") ")[2].split()[1])
            except OSError:
                continue  # it ended meanwhile
            if parent == own:
                found.add(int(entry))
    return found


class ForkServer:
    """Serves requests from ``requests``, a ``SOCK_SEQPACKET`` socket: one message, one JSON object.

    ``{"do": "spawn", "name", "arguments", "log"}`` with the descriptors of standard input and output (with
    ``"execute": true`` the arguments are a command line of any program),
    ``{"do": "signal", "name", "number"}``; answered with ``{"event": "spawned" | "ended", "name", ...}``.
    """

    def __init__(self, requests: socket.socket, entry: Entry, grace_s: float = GRACE_S) -> None:
        self.requests = requests
        self.entry = entry
        self.grace_s = grace_s
        self.running: dict[int, str] = {}
        self.gone: list[tuple[str, int, int]] = []

    def run(self) -> None:
        """Serve until the other end of the socket is gone, and until no process is left."""
        require_one_thread()
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        prctl(PR_SET_NAME, b"rack-forks")
        for number in HELD_BACK:  # a Ctrl-C is the supervisor's to obey
            signal.signal(number, signal.SIG_IGN)
        awake, alarm = socket.socketpair()
        for each in (awake, alarm):
            each.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(alarm.fileno(), warn_on_full_buffer=False)
        gc.freeze()  # a collection in a child would touch, and so copy, every object of this process
        while self._serve_once(awake):
            pass
        self._end_all(awake)

    def _serve_once(self, awake: socket.socket) -> bool:
        """Wait for something to do and do it; whether there may be more."""
        readable, _, _ = select.select([self.requests, awake], [], [])
        if awake in readable:
            self._reap(awake)
        if self.requests not in readable:
            return True
        try:
            data, descriptors, _, _ = socket.recv_fds(self.requests, MESSAGE_BYTES_MAX, 2)
        except ConnectionError:
            return False
        if not data:
            return False
        request = json.loads(data)
        if request["do"] == "spawn":
            self._spawn(request, descriptors)
        else:
            for pid, name in self.running.items():
                if name == request["name"]:
                    os.kill(pid, request["number"])
        return True

    def _spawn(self, request: dict[str, Any], descriptors: list[int]) -> None:
        server = os.getpid()
        # Until the child has its own handlers; a blocked signal waits for them even where it is ignored.
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD_BACK)
        try:
            pid = os.fork()
            if pid == 0:
                as_child(lambda: become(self.entry, request, descriptors, server))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
        for each in descriptors:
            os.close(each)
        self.running[pid] = request["name"]
        self._tell(event="spawned", name=request["name"], pid=pid)

    def _reap(self, awake: socket.socket) -> None:
        """Wait for whoever has ended, and end what they have left behind."""
        try:
            awake.recv(4096)
        except BlockingIOError:
            pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            name = self.running.pop(pid, None)
            if name is not None:
                self.gone.append((name, pid, os.waitstatus_to_exitcode(status)))
        if not self.gone:
            return
        orphans = children() - self.running.keys()
        for pid in orphans:
            os.kill(pid, signal.SIGKILL)
        if not orphans:
            for name, pid, returncode in self.gone:
                self._tell(event="ended", name=name, pid=pid, returncode=returncode)
            self.gone.clear()

    def _tell(self, **event: object) -> None:
        try:
            self.requests.send(json.dumps(event).encode())
        except ConnectionError:
            pass  # the next receive says so too, and that is where it is acted upon

    def _end_all(self, awake: socket.socket) -> None:
        """The supervisor is gone. Its services have heard of it as well; kill those that are still there in the end."""
        deadline = time.monotonic() + self.grace_s
        while left := children():
            if time.monotonic() >= deadline:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
            select.select([awake], [], [], min(1.0, max(0.05, deadline - time.monotonic())))
            self._reap(awake)


def as_child(main: Callable[[], None]) -> NoReturn:
    """What a forked child does: run ``main`` and leave with its exit code. Nothing of the parent is unwound."""
    code = 1
    try:
        main()
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:  # noqa: BLE001 whatever it was, the parent's frames are not for this process to unwind
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def become(entry: Entry, request: dict[str, Any], descriptors: list[int], server: int) -> None:
    """Turn the forked child into the service, and be it."""
    os.setsid()  # a Ctrl-C at the terminal is not for it
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != server:
        os._exit(1)
    prctl(PR_SET_NAME, request["name"].encode()[:15])
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    their_input, their_output = descriptors
    stand_on(their_input, their_output, open_log(request["log"]))
    keep_only(())
    sys.argv = ["crucible-emu", *request["arguments"]]
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
    if request.get("execute"):
        _execute(request["arguments"])
    entry(request["arguments"])


def _execute(words: list[str]) -> NoReturn:
    """Become another program; that it dies with its parent, and who its parent is, stays."""
    try:
        os.execvp(words[0], words)
    except OSError as error:
        print(f"Error: {words[0]} cannot be run: {(error.strerror or str(error)).lower()}", file=sys.stderr)
        raise SystemExit(2) from None


def prepare_log(path: Path) -> int:
    """Make room in a service's log; how long it is before the next start. One old log is kept beside it."""
    try:
        length = path.stat().st_size
    except FileNotFoundError:
        return 0
    if length <= LOG_BYTES_MAX:
        return length
    path.replace(path.with_name(f"{path.name}.1"))
    return 0


def last_words(path: Path, since: int) -> str:
    """The last line of a log after its first ``since`` bytes, without its ``Error: ``; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(since, path.stat().st_size - MESSAGE_BYTES_MAX))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].removeprefix("Error: ")[:1000] if lines else ""
