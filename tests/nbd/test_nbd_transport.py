"""The raw socket's way of asking again before it sleeps."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from crucible_emu.nbd import transport
from crucible_emu.nbd.eagerness import UNASKED_MAX, Eagerness
from crucible_emu.nbd.transport import SocketTransport


def answers_until_the_next_try(eagerness: Eagerness) -> int:
    count = 1
    while not eagerness.willing():
        count += 1
    return count


def test_each_try_in_vain_doubles_the_answers_until_the_next() -> None:
    eagerness = Eagerness()
    distances = []
    for _ in range(10):
        distances.append(answers_until_the_next_try(eagerness))
        eagerness.asked(found=False)
    assert distances == [1, 3, 5, 9, 17, 33, 65, 129, UNASKED_MAX + 1, UNASKED_MAX + 1]


def test_one_success_makes_it_try_after_every_answer() -> None:
    eagerness = Eagerness()
    for _ in range(6):
        eagerness.asked(found=False)
    assert answers_until_the_next_try(eagerness) > 1
    eagerness.asked(found=True)
    assert [answers_until_the_next_try(eagerness) for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("eager", [False, True])
async def test_a_socket_with_nothing_to_give_lets_the_loop_sleep(eager: bool) -> None:
    mine, theirs = socket.socketpair()
    with theirs:
        door = SocketTransport(mine)
        target = bytearray(16)
        counts = []

        async def receive() -> None:
            counts.append(await door.receive([memoryview(target)], eager))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            await trio.testing.wait_all_tasks_blocked()
            theirs.sendall(b"late")
        assert counts == [4]
        assert target[:4] == b"late"
        await door.close()


async def test_a_client_that_answers_at_once_is_heard_without_a_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = socket.socketpair()
    ticks = iter(range(1000))

    def clock() -> float:
        tick = next(ticks)
        if tick == 3:
            theirs.sendall(b"soon")
        return tick * transport.ASKING_S / 10

    async def no_sleep(_: object) -> None:
        raise AssertionError("the loop slept")

    monkeypatch.setattr(transport, "perf_counter", clock)
    monkeypatch.setattr(trio.lowlevel, "wait_readable", no_sleep)
    with theirs:
        door = SocketTransport(mine)
        target = bytearray(16)
        assert await door.receive([memoryview(target)[:1], memoryview(target)[1:]], eager=True) == 4
        assert target[:4] == b"soon"
        await door.close()
