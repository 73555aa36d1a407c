"""TLS with certificates on both sides (wire-protocol.md §6.7)."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme
from cryptography.hazmat.primitives import serialization
from downstairs_rig import ScriptedUpstairs, definition, payload, read, serving, write

from crucible_emu.downstairs import tls
from crucible_emu.errors import UsageError
from crucible_emu.region import Region
from crucible_emu.wire import messages as m

NAMES = ("downstairs0", "downstairs1", "downstairs2")


class Papers:
    """A root, and a certificate with its key for a Downstairs and for an Upstairs."""

    def __init__(self, directory: Path) -> None:
        self.root = trustme.CA()
        self.upstairs = self.root.issue_cert("upstairs")
        self.cert, self.key, self.root_pem = (directory / name for name in ("cert.pem", "key.pem", "root.pem"))
        served = self.root.issue_cert(*NAMES)
        self.cert.write_bytes(b"".join(blob.bytes() for blob in served.cert_chain_pems))
        self.key.write_bytes(served.private_key_pem.bytes())
        self.root.cert_pem.write_to_path(self.root_pem)

    def server(self) -> ssl.SSLContext:
        return tls.server_context(self.cert, self.key, self.root_pem)

    def client(self, *, certified: bool = True, root: trustme.CA | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context()
        (root or self.root).configure_trust(context)
        if certified:
            self.upstairs.configure_cert(context)
        return context


@pytest.fixture
def papers(tmp_path: Path) -> Papers:
    return Papers(tmp_path)


async def connect(server: Any, context: ssl.SSLContext, name: str = NAMES[0]) -> trio.SSLStream[trio.SocketStream]:
    raw = await trio.open_tcp_stream(server.address.host, server.address.port)
    return trio.SSLStream(raw, context, server_hostname=name)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_everything_inside_tls(
    make_region: Callable[..., Region], papers: Papers, version: ssl.TLSVersion
) -> None:
    region = make_region(definition(blocks=2048))
    context = papers.client()
    context.minimum_version = context.maximum_version = version
    async with serving(region, tls=papers.server()) as server, await connect(server, context, NAMES[2]) as stream:
        upstairs = ScriptedUpstairs(stream)
        await upstairs.activate()
        # Frames of many records, in both directions at once.
        async with trio.open_nursery() as nursery:
            count = 4096
            jobs = [write(1000 + index, 0, count, index, (999 + index,) if index else ()) for index in range(4)]
            nursery.start_soon(upstairs.say, *jobs, read(2000, 0, count, (1003,)), read(2001, 0, count, (1003,)))
            for job in jobs:
                assert (await upstairs.hear(m.WriteAck)).job_id == job.job_id
            for _ in range(2):
                assert (await upstairs.hear(m.ReadResponse)).data == payload(count, 3)


async def test_peer_without_a_certificate_is_not_heard(make_region: Callable[..., Region], papers: Papers) -> None:
    async with serving(make_region(), tls=papers.server()) as server:
        await expect_refusal(server, papers.client(certified=False))
        await still_served(server, papers)


async def test_peer_of_another_root_is_not_heard(make_region: Callable[..., Region], papers: Papers) -> None:
    context = papers.client(certified=False)
    trustme.CA().issue_cert("stranger").configure_cert(context)
    async with serving(make_region(), tls=papers.server()) as server:
        await expect_refusal(server, context)
        await still_served(server, papers)


async def expect_refusal(server: Any, context: ssl.SSLContext) -> None:
    stream = await connect(server, context)

    async def try_to_talk() -> None:
        await stream.do_handshake()
        await stream.receive_some(1)  # with TLS 1.3 the client learns of the refusal here

    with pytest.raises(trio.BrokenResourceError):
        await try_to_talk()
    await trio.aclose_forcefully(stream)
    assert server.core.statistics.connections == 0


async def still_served(server: Any, papers: Papers) -> None:
    async with await connect(server, papers.client()) as stream:
        await ScriptedUpstairs(stream).activate()


async def test_client_checks_the_name(make_region: Callable[..., Region], papers: Papers) -> None:
    async with serving(make_region(), tls=papers.server()) as server:
        stream = await connect(server, papers.client(), "downstairs3")
        with pytest.raises(trio.BrokenResourceError):
            await stream.do_handshake()
        await trio.aclose_forcefully(stream)


async def test_plain_peer_at_a_tls_port_costs_its_connection(
    make_region: Callable[..., Region], papers: Papers
) -> None:
    async with serving(make_region(), tls=papers.server()) as server:
        stream = await trio.open_tcp_stream(server.address.host, server.address.port)
        async with stream:
            await stream.send_all(bytes(100))
            with contextlib.suppress(trio.BrokenResourceError):  # the end, or a reset, as the timing wants it
                while await stream.receive_some():
                    pass
        await still_served(server, papers)


@pytest.mark.parametrize("form", [serialization.PrivateFormat.TraditionalOpenSSL, serialization.PrivateFormat.PKCS8])
def test_keys_in_both_forms(papers: Papers, form: serialization.PrivateFormat) -> None:
    """PKCS#1 is what the real program takes; PKCS#8 is what most tools write today."""
    root = trustme.CA(key_type=trustme.KeyType.RSA)
    issued = root.issue_cert(*NAMES, key_type=trustme.KeyType.RSA)
    key = serialization.load_pem_private_key(issued.private_key_pem.bytes(), None)
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    assert (b"RSA PRIVATE KEY" in pem) == (form is serialization.PrivateFormat.TraditionalOpenSSL)
    papers.cert.write_bytes(issued.cert_chain_pems[0].bytes())
    papers.key.write_bytes(pem)
    assert papers.server().verify_mode is ssl.CERT_REQUIRED


def test_wrong_files_are_named(papers: Papers, tmp_path: Path) -> None:
    missing, rubbish = tmp_path / "missing.pem", tmp_path / "rubbish.pem"
    rubbish.write_text("no certificate at all")
    other_key = tmp_path / "other.pem"
    other_key.write_bytes(papers.root.issue_cert("x").private_key_pem.bytes())
    locked = tmp_path / "locked.pem"
    key = serialization.load_pem_private_key(papers.key.read_bytes(), None)
    best = serialization.BestAvailableEncryption(b"secret")
    locked.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, best))
    for files, named in (
        ((missing, papers.key, papers.root_pem), "missing.pem"),
        ((rubbish, papers.key, papers.root_pem), "rubbish.pem"),
        ((papers.cert, other_key, papers.root_pem), "other.pem"),
        ((papers.cert, locked, papers.root_pem), "password"),
        ((papers.cert, papers.key, rubbish), "rubbish.pem holds no PEM certificate"),
    ):
        with pytest.raises(UsageError, match=named):
            tls.server_context(*files)
