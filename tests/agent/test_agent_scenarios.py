"""The real agent's scenarios (apis-and-tools.md §1.10) and those it lacks, over the API with real regions behind it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from agent_rig import ENOUGH_S, POOL, A, B, C, Served, first_byte, serving_agent, wish
from agent_rig import until as poll
from disk_rig import until
from trio.testing import MockClock

from crucible_emu.agent import Failing, Failures
from crucible_emu.agent.agent import REMOVAL_PAUSE_S
from crucible_emu.agent.core import PortPool
from crucible_emu.agent.states import RegionState
from crucible_emu.region.view import RegionView
from crucible_emu.wire.constants import REPAIR_PORT_OFFSET


def files(directory: Path, where: str = "regions") -> set[str]:
    """What lies in the dataset."""
    return {path.name for path in (directory / where).iterdir()}


def repair_address(served: Served, port: int) -> str:
    return f"{served.host}:{port + REPAIR_PORT_OFFSET}"


async def test_region_reaches_created_and_its_downstairs_runs(tmp_path: Path) -> None:
    async with serving_agent(tmp_path) as served:
        answer = await served.post(A)
        assert (answer["state"], answer["port_number"], answer["read_only"]) == ("requested", 19000, False)
        await served.until(A, "created")
        await served.fill(A, 7)
        assert await served.post(A) == await served.region(A), "a POST that is repeated is how to wait"
    definition = RegionView.open(tmp_path / "regions" / A).definition
    assert (str(definition.uuid), definition.total_blocks) == (A, 32)


async def test_region_fails_and_no_downstairs_runs(tmp_path: Path, expect_log) -> None:
    expect_log("region not made.*told to let every create fail")
    async with serving_agent(tmp_path, failures=Failures(frozenset({Failing.CREATE}))) as served:
        await served.post(A)
        await served.until(A, "failed")
        assert not served.agent.services.is_up(f"downstairs-{A}")
        assert files(tmp_path) == set()
        assert (await served.post(A))["state"] == "failed", "it is not tried again"
        await served.removed(A)


@pytest.mark.parametrize(
    ("region_id", "changes", "reason"),
    [
        ("not-a-uuid", {}, "is no UUID"),
        ("../../escaped", {}, "is no UUID"),
        (A, {"block_size": 1000}, "block size 1000 is not usable"),
        (A, {"extent_count": 0}, "cannot have 0 extents"),
        (A, {"extent_count": 2**32 - 1}, "cannot have 4294967295 extents"),
        (A, {"extent_size": 2**64 - 1}, "is bigger than"),
        (A, {"source": "127.0.0.1:1"}, "onnect"),
    ],
)
async def test_what_cannot_be_made_ends_in_failed(tmp_path: Path, expect_log, region_id, changes, reason) -> None:
    expect_log(f"region not made.*{reason}")
    async with serving_agent(tmp_path) as served:
        await served.post(region_id, **changes)
        await poll(served.states, lambda states: states[region_id] == "failed")
        assert files(tmp_path) == set()
    assert files(tmp_path, ".") == {"crucible.json", "regions"}


async def test_region_with_a_source_is_a_read_only_copy(tmp_path: Path) -> None:
    """The source is a running snapshot of another agent."""
    async with serving_agent(tmp_path / "one") as one, serving_agent(tmp_path / "two") as two:
        await one.made(A)
        await one.fill(A, 9, snapshot="monday")
        run = await one.run(A, "monday")
        clone = await two.made(B, source=repair_address(one, run["port_number"]))
        assert clone["read_only"] is True
        assert await first_byte(two.host, clone["port_number"]) == 9
        original = await one.digest(f"/{A}/snapshots/monday")
        copy = await two.digest(f"/{B}")
        assert (copy["digest"], copy["extents"]) == (original["digest"], original["extents"])
        assert copy["immutable"] and original["immutable"]


async def test_clone_of_another_shape_fails(tmp_path: Path, expect_log) -> None:
    expect_log("region not made.*extent_count")
    async with serving_agent(tmp_path) as served:
        await served.made(A)
        await served.fill(A, 9, snapshot="monday")
        run = await served.run(A, "monday")
        await served.post(B, source=repair_address(served, run["port_number"]), extent_count=5)
        await served.until(B, "failed")
        assert files(tmp_path) == {A}


async def test_agent_bounced_in_mid_flight_changes_nothing(tmp_path: Path) -> None:
    """It ends while a clone is under way: shown and stored as requested, and begun again."""
    async with serving_agent(tmp_path / "one") as one:
        await one.made(A)
        await one.fill(A, 9, snapshot="monday")
        source = repair_address(one, (await one.run(A, "monday"))["port_number"])
        async with serving_agent(tmp_path / "two", failures=Failures(slow_s=0.2)) as two:
            await two.post(B, source=source)
            await two.made(C)
            await until((tmp_path / "two" / "regions" / f".making-{B}").exists)
            before = await two.region(B)
            assert before["state"] == "requested"
        async with serving_agent(tmp_path / "two") as two:
            assert await two.region(B) == before
            assert (await two.until(B, "created"))["port_number"] == before["port_number"]
            assert (await two.region(C))["state"] == "created"
            assert files(tmp_path / "two") == {B, C}


async def test_create_followed_by_destroy_removes_the_downstairs(tmp_path: Path) -> None:
    async with serving_agent(tmp_path) as served:
        await served.made(A)
        await served.removed(A)
        assert not served.agent.services.is_up(f"downstairs-{A}")
        assert files(tmp_path) == set()
        with pytest.raises(OSError):
            await trio.open_tcp_stream(served.host, 19000)
        assert (await served.post(A))["state"] == "destroyed", "an id is used once"
        assert (await served.post(B))["port_number"] == 19000, "its port is free again"


async def test_running_snapshot_create_and_delete(tmp_path: Path) -> None:
    async with serving_agent(tmp_path) as served:
        await served.made(A)
        await served.fill(A, 3, snapshot="monday")
        await served.fill(A, 4, generation=2)
        answer = await served.ask("POST", f"/{A}/snapshots/monday/run")
        assert (answer["id"], answer["name"], answer["port_number"]) == (A, "monday", 19001)
        run = await served.run_of(A, "monday", "created")
        assert await first_byte(served.host, run["port_number"]) == 3, "the snapshot does not change with its region"
        await served.ask("DELETE", f"/{A}/snapshots/monday/run", 204)
        await served.run_of(A, "monday", "destroyed")
        again = await served.ask("POST", f"/{A}/snapshots/monday/run")
        assert again["state"] == "destroyed", "once stopped it is not run again"
        await served.ask("DELETE", f"/{A}/snapshots/monday", 204)


async def test_snapshots_are_listed_with_their_time(tmp_path: Path) -> None:
    async with serving_agent(tmp_path) as served:
        await served.made(A)
        assert await served.ask("GET", f"/{A}/snapshots") == {"snapshots": [], "running_snapshots": {}}
        await served.fill(A, 3, snapshot="tuesday")
        await served.fill(A, 4, snapshot="monday", generation=2)
        (tmp_path / "regions" / A / ".zfs" / "snapshot" / ".making-x").mkdir()
        found = await served.ask("GET", f"/{A}/snapshots")
        assert [each["name"] for each in found["snapshots"]] == ["monday", "tuesday"]
        assert found["snapshots"][0] == await served.ask("GET", f"/{A}/snapshots/monday")
        assert found["snapshots"][1]["created"] < found["snapshots"][0]["created"]
        assert found["snapshots"][0]["created"].endswith("Z")
        await served.ask("GET", f"/{A}/snapshots/.making-x", 404)


async def test_region_with_snapshots_is_not_deleted(tmp_path: Path) -> None:
    async with serving_agent(tmp_path) as served:
        await served.made(A)
        await served.fill(A, 3, snapshot="monday")
        await served.ask("DELETE", f"/{A}", 400)
        await served.ask("DELETE", f"/{A}/snapshots/monday", 204)
        await served.ask("DELETE", f"/{A}/snapshots/monday", 204)
        await served.removed(A)
        await served.ask("DELETE", f"/{A}/snapshots/monday", 204)


async def test_mismatched_double_create(tmp_path: Path) -> None:
    async with serving_agent(tmp_path) as served:
        await served.made(A)
        refusal = await served.post(A, 409, extent_count=5)
        assert refusal["message"] == f"region {A!r} exists with another extent count 4, not 5"
        refusal = await served.post(A, 409, key_pem="a secret")
        assert refusal["message"] == f"region {A!r} exists with another key"


async def test_port_pool_exhaustion_and_reuse(tmp_path: Path) -> None:
    async with serving_agent(tmp_path, pool=PortPool(19000, 2)) as served:
        await served.made(A)
        await served.made(B)
        assert "all 2 ports" in (await served.post(C, 409))["message"]
        assert C not in await served.states()
        await served.removed(A)
        assert (await served.made(C))["port_number"] == 19000


async def test_snapshot_delete_while_running(tmp_path: Path) -> None:
    async with serving_agent(tmp_path) as served:
        await served.made(A)
        await served.fill(A, 3, snapshot="monday")
        await served.run(A, "monday")
        await served.ask("DELETE", f"/{A}/snapshots/monday", 409)
        await served.ask("DELETE", f"/{A}/snapshots/monday/run", 204)
        await served.run_of(A, "monday", "destroyed")
        await served.ask("DELETE", f"/{A}/snapshots/monday", 204)
        assert (await served.ask("GET", f"/{A}/snapshots"))["snapshots"] == []


async def test_delete_while_cloning_is_answered_503(tmp_path: Path) -> None:
    async with serving_agent(tmp_path, failures=Failures(slow_s=0.3)) as served:
        await served.made(A)
        await served.fill(A, 9, snapshot="monday")
        run = await served.run(A, "monday")
        await served.post(B, source=repair_address(served, run["port_number"]))
        await until(lambda: served.agent.region(B).state is RegionState.CREATING)
        await served.ask("DELETE", f"/{B}", 503)
        assert (await served.region(B))["state"] == "requested"
        await served.until(B, "created")
        await served.removed(B)


async def test_clones_run_beside_each_other_and_beside_other_work(tmp_path: Path) -> None:
    async with serving_agent(tmp_path) as served:
        await served.made(A)
        await served.fill(A, 9, snapshot="monday")
        source = repair_address(served, (await served.run(A, "monday"))["port_number"])
        ids = [f"dddddddd-0000-4000-8000-{number:012}" for number in range(8)]
        for each in ids:
            await served.post(each, source=source)
        for each in ids:
            await served.until(each, "created")
        assert len({(await served.digest(f"/{each}"))["digest"] for each in ids}) == 1


async def test_capacity_is_kept(tmp_path: Path, expect_log) -> None:
    """Regions of 16 KiB need 20 KiB each."""
    expect_log("region not made.*a reservation of 20480 bytes, 9520 are left")
    async with serving_agent(tmp_path, capacity_bytes=50_480) as served:
        await served.made(A)
        await served.made(B)
        await served.post(C)
        await served.until(C, "failed")
        await served.removed(A)
        await served.made(wish(C)["id"].replace("c", "d"))


async def test_tls_material_is_stored_and_used(tmp_path: Path, expect_log) -> None:
    """What cannot be used keeps the Downstairs from starting, and no word of the key is said."""
    expect_log("downstairs ended.*are not a PEM certificate and its key", at_least=1)
    pem = {"cert_pem": "a certificate", "key_pem": "very secret", "root_pem": "a root"}
    async with serving_agent(tmp_path) as served:
        region = await served.made(A, **pem)
        assert {name: region[name] for name in pem} == pem, "the key comes back in clear, as in the real one"
        for name, text in pem.items():
            path = tmp_path / "regions" / A / name.replace("_pem", ".pem")
            assert path.read_text() == text
            assert path.stat().st_mode & 0o777 == 0o600
        assert not served.agent.services.is_up(f"downstairs-{A}")
        assert (tmp_path / "crucible.json").stat().st_mode & 0o777 == 0o600


async def test_removal_is_tried_five_times(tmp_path: Path, expect_log, mock_clock: MockClock) -> None:
    """The clock goes ten times as fast while the agent pauses: it never jumps, for threads are at work meanwhile."""
    expect_log("region not removed reg.*told to let every delete fail", at_least=5)
    expect_log("region not removed, giving up")
    mock_clock.rate = 1
    async with serving_agent(tmp_path) as served:
        await served.made(A)
    async with serving_agent(tmp_path, failures=Failures(frozenset({Failing.DELETE}))) as served:
        mock_clock.rate = 10
        before = trio.current_time()
        await served.ask("DELETE", f"/{A}", 204)
        await poll(lambda: served.region(A), lambda found: found["state"] == "failed", timeout_s=10 * ENOUGH_S)
        assert trio.current_time() - before >= 4 * REMOVAL_PAUSE_S
        mock_clock.rate = 1
        assert (await served.post(B))["port_number"] == 19001, "a failed region keeps its port"
    async with serving_agent(tmp_path) as served:
        await served.removed(A)


async def test_run_that_fails_is_final(tmp_path: Path, expect_log) -> None:
    expect_log("snapshot not run.*told to let every run fail")
    async with serving_agent(tmp_path, failures=Failures(frozenset({Failing.RUN}))) as served:
        await served.made(A)
        await served.fill(A, 3, snapshot="monday")
        await served.ask("POST", f"/{A}/snapshots/monday/run")
        await served.run_of(A, "monday", "failed")
        await served.ask("DELETE", f"/{A}/snapshots/monday/run", 409)
        await served.ask("DELETE", f"/{A}/snapshots/monday", 409)
        assert (await served.ask("POST", f"/{A}/snapshots/monday/run"))["state"] == "failed"


async def test_taken_port_is_waited_for(tmp_path: Path, expect_log) -> None:
    """Somebody else listens where the snapshot's Downstairs shall: it stays requested, other work goes on."""
    expect_log("downstairs ended.*cannot listen")
    async with serving_agent(tmp_path) as served:
        await served.made(A)
        await served.fill(A, 3, snapshot="monday")
        async with trio.open_nursery() as nursery:
            taken = await trio.open_tcp_listeners(POOL.low + 1, host=served.host)
            await served.ask("POST", f"/{A}/snapshots/monday/run")
            await served.made(B)
            run = await served.run_of(A, "monday", "requested")
            assert run["port_number"] == POOL.low + 1
            await taken[0].aclose()
            await served.run_of(A, "monday", "created")
            nursery.cancel_scope.cancel()


async def test_restart_starts_what_ran(tmp_path: Path) -> None:
    async with serving_agent(tmp_path) as served:
        await served.made(A)
        await served.fill(A, 3, snapshot="monday")
        await served.run(A, "monday")
        await served.made(B)
        await served.removed(B)
        before = (await served.ask("GET", ""), await served.ask("GET", f"/{A}/snapshots"))
    async with serving_agent(tmp_path) as served:
        assert (await served.ask("GET", ""), await served.ask("GET", f"/{A}/snapshots")) == before
        assert await first_byte(served.host, 19001) == 3
        await served.fill(A, 5, generation=2)


async def test_isolated_downstairs_are_processes(tmp_path: Path) -> None:
    async with serving_agent(tmp_path, isolate=True) as served:
        await served.made(A)
        await served.fill(A, 3, snapshot="monday")
        run = await served.run(A, "monday")
        assert await first_byte(served.host, run["port_number"]) == 3
        assert served.agent.services.region(f"downstairs-{A}") is None, "it is not open in this process"
        assert (await served.digest(f"/{A}"))["digest"] == (await served.digest(f"/{A}/snapshots/monday"))["digest"]
        await served.ask("DELETE", f"/{A}/snapshots/monday/run", 204)
        await served.run_of(A, "monday", "destroyed")
        await served.ask("DELETE", f"/{A}/snapshots/monday", 204)
        await served.removed(A)
        assert files(tmp_path) == set()
