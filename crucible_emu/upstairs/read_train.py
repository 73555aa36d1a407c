"""Single-block reads that travel together: one job for all that go to one replica.

What it is for: reads of one block each that arrive together become one job of as many operations per replica, sent in
one piece; their answers come back in runs, and are verified, handed to the guest and settled run by run.

What it guarantees: each request is answered exactly once, with bytes that passed their hash, or with the error of the
whole job when every replica has failed it. Where one operation fails on a replica, the whole job is tried on the next:
what was answered already is not touched again, for the memory may be the guest's by then.
"""

from __future__ import annotations

from crucible_emu.blockio import Completed, Request
from crucible_emu.errors import CrucibleError
from crucible_emu.integrity import EMPTY, BlockContexts


class ReadTrain:
    """The handle of such a job: ``requests`` in the order of its operations, ``None`` for those that are answered."""

    __slots__ = ("completed", "requests")

    def __init__(self, requests: list[Request], completed: Completed) -> None:
        self.requests: list[Request | None] = list(requests)
        self.completed = completed

    def out(self, position: int) -> memoryview | None:
        """Where the data of one operation go; ``None`` once it was answered."""
        request = self.requests[position]
        return None if request is None else request.buffer

    def take(self, position: int, data: memoryview | bytes, finished: Finished) -> bool:
        """The data of one operation, which are right and of a block that was written; ``False`` where nothing waits
        for them, or they are of another length."""
        request = self.requests[position]
        if request is None or request.buffer is None or len(data) != request.length:
            return False
        request.buffer[:] = data
        if request.owned is not None:
            request.owned[0] = True
        self.requests[position] = None
        finished.add(self.completed, request)
        return True

    def verified(self, position: int, contexts: BlockContexts, client: int) -> None:
        """The data of one operation are in their place and right."""
        request = self.requests[position]
        if request is not None:
            self.requests[position] = None
            if request.owned is not None:
                request.owned[:] = contexts.kind != EMPTY
            self.completed([request])

    def answered(self, error: CrucibleError | None) -> None:
        """The job has come to its end: what is not answered has failed."""
        left = [request for request in self.requests if request is not None]
        self.requests = [None] * len(self.requests)
        for request in left:
            request.error = error
        if left:
            self.completed(left)


class Finished:
    """Requests that are answered, to be reported in one call per door, which then answers them together."""

    __slots__ = ("_by_door",)

    def __init__(self) -> None:
        self._by_door: dict[Completed, list[Request]] = {}

    def add(self, completed: Completed, request: Request) -> None:
        requests = self._by_door.get(completed)
        if requests is None:
            self._by_door[completed] = [request]
        else:
            requests.append(request)

    def report(self) -> None:
        for completed, requests in self._by_door.items():
            completed(requests)
