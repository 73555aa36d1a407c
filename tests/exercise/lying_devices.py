"""Disks in memory that do what no disk should do."""

from __future__ import annotations

from collections.abc import Callable

from crucible_emu import errors
from crucible_emu.blockio import Completed, Kind, Request
from crucible_emu.blockio_memory import MemoryDevice

Lie = Callable[["LyingDevice", Request], Request | None]
"""Given a request, what is carried out instead; ``None``: nothing, although it is acknowledged."""


class LyingDevice(MemoryDevice):
    """Tells ``lie`` about requests of ``kind`` once :attr:`lying` is set; honest otherwise."""

    def __init__(self, size_bytes: int, kind: Kind, lie: Lie) -> None:
        super().__init__(size_bytes, 512)
        self.lying = False
        self._kind = kind
        self._lie = lie

    def submit(self, requests: list[Request], completed: Completed) -> None:
        for request in requests:
            done: Request | None = request
            if self.lying and request.kind is self._kind:
                done = self._lie(self, request)
            if done is not None:
                super().submit([done], lambda _: None)
                request.error = done.error
        completed(requests)


def lost_write(device: LyingDevice, request: Request) -> None:
    return None


def write_elsewhere(blocks: int) -> Lie:
    def lie(device: LyingDevice, request: Request) -> Request:
        offset = (request.offset + blocks * device.block_size) % (device.size_bytes - request.length)
        return Request(request.kind, offset, request.length, request.buffer)

    return lie


def read_elsewhere(blocks: int) -> Lie:
    def lie(device: LyingDevice, request: Request) -> Request:
        offset = (request.offset + blocks * device.block_size) % device.size_bytes
        if offset + request.length > device.size_bytes:
            offset = 0
        return Request(request.kind, offset, request.length, request.buffer)

    return lie


def torn_write(device: LyingDevice, request: Request) -> Request:
    """The second half of the first block stays as it was."""
    assert request.buffer is not None
    half = device.block_size // 2
    torn = bytearray(request.buffer)
    torn[half : 2 * half] = device.data[request.offset + half : request.offset + 2 * half]
    return Request(request.kind, request.offset, request.length, memoryview(torn))


def flipped_bit(device: LyingDevice, request: Request) -> Request:
    """One bit of the last byte."""
    assert request.buffer is not None
    flipped = bytearray(request.buffer)
    flipped[-1] ^= 0x10
    return Request(request.kind, request.offset, request.length, memoryview(flipped))


def zeros_instead(device: LyingDevice, request: Request) -> Request:
    return Request(request.kind, request.offset, request.length, memoryview(bytearray(request.length)))


def write_too_much(device: LyingDevice, request: Request) -> Request:
    """One block more than asked for."""
    assert request.buffer is not None
    if request.offset + request.length == device.size_bytes:
        return request
    more = bytes(request.buffer) + bytes(request.buffer)[-device.block_size :]
    return Request(request.kind, request.offset, len(more), memoryview(bytearray(more)))


def failing(device: LyingDevice, request: Request) -> Request:
    request.error = errors.IoError("this one fails")
    refused = Request(Kind.FLUSH)
    refused.error = request.error
    return refused
