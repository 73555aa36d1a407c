"""The Downstairs of an agent: kept running, as tasks and as processes, with TLS, and ended before their files go."""

from __future__ import annotations

import os
import signal
import ssl
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
import trio
import trustme
from agent_rig import A, B, connected, own_host, serving_agent
from disk_rig import until

from crucible_emu.agent.services import AsChildren, InThisProcess, Running, ServiceConfig, Services
from crucible_emu.geometry import RegionDefinition
from crucible_emu.region import Region


def processes(directory: Path) -> set[int]:
    """Numbers of the processes that serve something below ``directory``."""
    found = set()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                words = Path("/proc", name, "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue  # it has just ended
            if any(word.startswith(str(directory).encode()) for word in words):
                found.add(int(name))
    return found


async def test_child_that_is_killed_is_started_again(tmp_path: Path, expect_log) -> None:
    expect_log(f"downstairs ended.*downstairs-{A}")
    async with serving_agent(tmp_path, isolate=True) as served:
        await served.made(A)
        await until(lambda: served.agent.services.is_up(f"downstairs-{A}"))
        (first,) = processes(tmp_path)
        await served.fill(A, 7)
        os.kill(first, signal.SIGKILL)
        await until(lambda: processes(tmp_path) not in (set(), {first}))
        await served.fill(A, 8, generation=2)
        await served.removed(A)
        assert processes(tmp_path) == set()
        await served.made(B)
    assert processes(tmp_path) == set(), "none outlives its agent"


async def test_region_with_papers_is_served_over_tls(tmp_path: Path) -> None:
    root = trustme.CA()
    papers = root.issue_cert("downstairs0")
    pem = {
        "cert_pem": b"".join(blob.bytes() for blob in papers.cert_chain_pems).decode(),
        "key_pem": papers.private_key_pem.bytes().decode(),
        "root_pem": root.cert_pem.bytes().decode(),
    }
    async with serving_agent(tmp_path) as served:
        region = await served.made(A, **pem)
        await until(lambda: served.agent.services.is_up(f"downstairs-{A}"))
        context = client_context(root)
        stream = await trio.open_tcp_stream(served.host, region["port_number"])
        async with trio.SSLStream(stream, context, server_hostname="downstairs0") as secure:
            await secure.do_handshake()


def client_context(root: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    root.configure_trust(context)
    root.issue_cert("upstairs").configure_cert(context)
    return context


@pytest.fixture
def config(tmp_path: Path) -> ServiceConfig:
    """A Downstairs of a new region."""
    Region.create(tmp_path / "region", RegionDefinition(512, 8, 4, UUID(int=5))).close()
    return ServiceConfig("x", tmp_path / "region", own_host(), 19000, read_only=False, tls=False)


@pytest.mark.parametrize("kind", ["task", "child"])
async def test_what_is_no_longer_wanted_has_ended(tmp_path: Path, config: ServiceConfig, kind: str) -> None:
    """Its region can be opened at once, and its port is free."""
    running: Running = InThisProcess() if kind == "task" else AsChildren(tmp_path / "output")
    async with trio.open_nursery() as nursery:
        services = Services(nursery, running)
        for generation in (1, 2):
            await services.apply({"x": config})
            assert services.is_up("x")
            assert (services.region("x") is not None) == (kind == "task")
            async with connected(config.host, config.port, generation):
                await services.apply({"x": config})
                assert services.is_up("x"), "what is wanted as before is left alone"
            await services.apply({})
            assert not services.is_up("x")
            Region.open(config.directory).close()
        await services.apply({"x": config})
        changed = replace(config, port=19001)
        await services.apply({"x": changed})
        async with connected(config.host, 19001, 3):
            pass
        nursery.cancel_scope.cancel()
    Region.open(config.directory).close()


@pytest.mark.parametrize("kind", ["task", "child"])
async def test_what_cannot_run_says_why(tmp_path: Path, config: ServiceConfig, expect_log, kind: str) -> None:
    expect_log("downstairs ended.*is no region: there is nothing of that name")
    running: Running = InThisProcess() if kind == "task" else AsChildren(tmp_path / "output")
    async with trio.open_nursery() as nursery:
        services = Services(nursery, running)
        await services.apply({"x": replace(config, directory=tmp_path / "none")})
        assert not services.is_up("x")
        await services.apply({})
        nursery.cancel_scope.cancel()


async def test_cancelled_while_it_is_being_started(config: ServiceConfig) -> None:
    """Race: the agent is told to end while a Downstairs is being opened."""
    for after_s in (0.0, 0.001, 0.003, 0.01):
        async with trio.open_nursery() as nursery:
            services = Services(nursery, InThisProcess())
            with trio.move_on_after(after_s):
                await services.apply({"x": config})
            nursery.cancel_scope.cancel()
        Region.open(config.directory).close()
