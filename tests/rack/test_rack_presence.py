"""Where a rack is, its lock, its state file, and ports that are held."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from crucible_emu.errors import UsageError
from crucible_emu.rack import launch, presence, state_file
from crucible_emu.rack.document import simple
from crucible_emu.rack.ports import Pool
from crucible_emu.rack.reservations import Reservations
from crucible_emu.rack.state import RackState, from_json


def test_a_rack_is_found_from_within(tmp_path: Path) -> None:
    inner = tmp_path / "rack" / "sled0" / "disk0"
    inner.mkdir(parents=True)
    with pytest.raises(UsageError, match="there is no rack here"):
        presence.find(None, inner, None)
    (tmp_path / "rack" / "rack.toml").touch()
    assert presence.find(None, inner, None) == tmp_path / "rack"
    assert presence.find(tmp_path / "rack", Path("/"), "/elsewhere") == tmp_path / "rack"
    assert presence.find(None, Path("/"), str(tmp_path / "rack")) == tmp_path / "rack"
    for given, environment in ((tmp_path, None), (None, str(tmp_path))):
        with pytest.raises(UsageError, match="there is no rack in"):
            presence.find(given, inner, environment)


def test_the_lock_is_one_persons_and_goes_with_the_last_holder(tmp_path: Path) -> None:
    first = presence.lock(tmp_path)
    assert first is not None and presence.lock(tmp_path) is None
    inherited = os.dup(first)
    os.close(first)
    assert presence.wait_for_lock(tmp_path, 0.05) is None
    os.close(inherited)
    again = presence.wait_for_lock(tmp_path, 0.05)
    assert again is not None
    os.close(again)


def test_a_socket_left_behind_is_replaced_and_swept(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    assert presence.connect(deep) is None
    presence.listen(deep).close()
    assert presence.connect(deep) is None  # it is there, and nobody listens
    with presence.listen(deep):
        caller = presence.connect(deep)
        assert caller is not None
        caller.close()
        assert (deep / presence.SOCKET).stat().st_mode & 0o777 == 0o600
    (deep / "file").touch()
    assert presence.sweep(tmp_path) == [deep / presence.SOCKET]
    assert [path.name for path in deep.iterdir()] == ["file"]


def test_state_comes_back(tmp_path: Path) -> None:
    assert state_file.load(tmp_path) == RackState()
    state = RackState({"a": 40000}, {"a": Pool(19000, 100)}, {"sled1"})
    state_file.save(tmp_path, state)
    assert state_file.load(tmp_path) == state
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2}',
        '{"format": 1, "http_ports": {}, "pools": {}}',
        '{"format": 1, "http_ports": {"a": "x"}, "pools": {}, "killed": []}',
        '{"format": 1, "http_ports": {"a": 70000}, "pools": {}, "killed": []}',
        '{"format": 1, "http_ports": {}, "pools": {"a": [1]}, "killed": []}',
        '{"format": 1, "http_ports": {}, "pools": {"a": 1}, "killed": []}',
    ],
)
def test_a_state_that_was_not_written_here_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError):
        from_json(text)
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(UsageError, match=r"cannot be read .*: restore it, or delete it"):
        state_file.load(tmp_path)


def server(port: int) -> socket.socket:
    """A listener as all servers make one. Raises :class:`OSError`."""
    found = socket.socket(socket.AF_INET6)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(("::1", port))
        found.listen()
    except OSError:
        found.close()
        raise
    return found


def test_a_held_port_can_be_listened_on_and_is_nobody_elses() -> None:
    with Reservations("::1") as reservations:
        port = reservations.take(lambda _: False)
        for _ in range(2):  # a service that comes back
            with server(port) as listener, socket.create_connection(("::1", port)) as client:
                listener.accept()[0].close()
                assert client.recv(1) == b""
        with socket.socket(socket.AF_INET6) as other, pytest.raises(OSError, match="in use"):
            other.bind(("::1", port))
    with (
        server(port),
        Reservations("::1") as later,
        pytest.raises(UsageError, match=f"one cannot have its port {port}"),
    ):
        later.hold(port, "one")


def test_a_bad_port_is_passed_over() -> None:
    with Reservations("127.0.0.1") as reservations:
        seen: list[int] = []

        def third(port: int) -> bool:
            seen.append(port)
            return len(seen) < 3

        assert reservations.take(third) == seen[2]
        assert len(set(seen)) == 3


def test_hundreds_are_claimed_all_or_none() -> None:
    with Reservations("127.9.9.9") as first, Reservations("127.9.9.9") as second:
        assert first.claim({1, 2}) == frozenset()
        assert first.claim({2, 3}) == frozenset()  # its own
        assert second.claim({3, 4}) == {3}
        assert first.claim({4}) == frozenset()
    with Reservations("127.9.9.9") as third:
        assert third.claim({1, 2, 3, 4}) == frozenset()


def test_ports_are_given_once(tmp_path: Path) -> None:
    rack = simple(2, pantries=1)
    with Reservations(rack.address) as reservations:
        first = launch.give_ports(tmp_path, rack, reservations)
    assert len(set(first.http_ports.values())) == 5
    assert not any(port in pool for port in first.http_ports.values() for pool in first.pools.values())
    with Reservations(rack.address) as reservations:
        assert launch.give_ports(tmp_path, rack, reservations) == first
    with Reservations(rack.address) as reservations:
        grown = launch.give_ports(tmp_path, simple(3, pantries=1), reservations)
    assert first.http_ports.items() <= grown.http_ports.items() and first.pools.items() <= grown.pools.items()
