"""What all typed clients have in common: headers, answers, refusals, silence."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
import trustme

from crucible_emu.client.agent import AgentClient
from crucible_emu.client.failures import ServiceError, ServiceUnreachable
from crucible_emu.client.pantry import PantryClient
from crucible_emu.client.service import ANSWER_BYTES_MAX
from crucible_emu.errors import RemoteError, UsageError
from crucible_emu.service import Api, Call, Exposure, Operation, Refusal, Versions, application, serving

TOKEN = "a-token-of-some-length"
REGION = {
    "id": "a",
    "state": "created",
    "block_size": 512,
    "extent_size": 8,
    "extent_count": 4,
    "encrypted": False,
    "port_number": 19000,
    "read_only": False,
}


async def get_region(call: Call) -> object:
    if call.path["id"] == "missing":
        raise Refusal(404, "there is no region 'missing'", "NoRegion")
    return REGION | {"id": call.path["id"]}


def api() -> Api:
    operations = [Operation("region_get", "GET", "/crucible/0/regions/{id}", get_region)]
    return Api("agent", operations, 1000, versions=Versions(("1.0.0",)))


def answering(answer: Callable[[httpx2.Request], httpx2.Response]) -> AgentClient:
    return AgentClient("http://agent", transport=httpx2.MockTransport(answer))


async def test_version_and_token_are_sent() -> None:
    transport = httpx2.ASGITransport(app=application(api(), token=TOKEN))
    async with AgentClient("http://agent/", token=TOKEN, transport=transport) as agent:
        assert (await agent.region_get("a")).port_number == 19000
        assert (await agent.region_get("a/b c")).id == "a/b c"
    async with AgentClient("http://agent", transport=transport) as stranger:
        with pytest.raises(ServiceError) as refused:
            await stranger.region_get("a")
        assert refused.value.status == 401


async def test_a_refusal_says_everything_that_is_known() -> None:
    async with AgentClient("http://agent", transport=httpx2.ASGITransport(app=application(api()))) as agent:
        with pytest.raises(ServiceError) as refused:
            await agent.region_get("missing")
    error = refused.value
    assert (error.status, error.message, error.error_code) == (404, "there is no region 'missing'", "NoRegion")
    assert str(error) == f"there is no region 'missing' (NoRegion): status 404, request {error.request_id}"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>bad gateway", "<html>bad gateway"),
        (b"", "refused without a word"),
        (b"[1]", "[1]"),
        (b'{"message": 5}', '{"message": 5}'),
        (b"[" * 50_000, "[" * 200),
    ],
)
async def test_a_refusal_that_is_no_envelope_is_quoted(body: bytes, message: str) -> None:
    async with answering(lambda _: httpx2.Response(502, content=body, headers={"x-request-id": "7"})) as agent:
        with pytest.raises(ServiceError) as refused:
            await agent.region_list()
    assert (refused.value.message, refused.value.request_id) == (message, "7")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"not json", "another document"),
        (b"{}", "another document"),
        (json.dumps([REGION | {"state": "dreaming"}]).encode(), "0.state"),
        (json.dumps([REGION | {"port_number": 70_000}]).encode(), "0.port_number"),
    ],
)
async def test_an_answer_that_is_no_document_is_the_services_fault(body: bytes, sentence: str) -> None:
    async with answering(lambda _: httpx2.Response(200, content=body)) as agent:
        with pytest.raises(RemoteError, match=sentence):
            await agent.region_list()


async def test_an_endless_answer_ends() -> None:
    async def endless() -> Any:
        piece = b" " * (1 << 20)
        for _ in range(ANSWER_BYTES_MAX // len(piece) + 1):
            yield piece

    async with answering(lambda _: httpx2.Response(200, content=endless())) as agent:
        with pytest.raises(RemoteError, match="more than"):
            await agent.region_list()


async def test_nobody_there_is_told_from_a_refusal() -> None:
    async with AgentClient("http://[::1]:1") as agent:
        with pytest.raises(ServiceUnreachable, match=r"no answer from http://\[::1\]:1"):
            await agent.region_list()


async def test_silence_ends_after_its_time() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with listeners[0], AgentClient(f"http://127.0.0.1:{port}", timeout_s=0.05) as agent:
        with pytest.raises(ServiceUnreachable, match="nothing came in time"):
            await agent.region_list()


async def test_tls_is_checked_and_works(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("::1")
    chain, key, trusted = tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "ca.pem"
    certificate.private_key_pem.write_to_path(key)
    for index, pem in enumerate(certificate.cert_chain_pems):
        pem.write_to_path(chain, append=index > 0)
    authority.cert_pem.write_to_path(trusted)
    exposure = Exposure(address="[::1]:0", tls_certificate=chain, tls_key=key)
    async with serving(api(), exposure) as url:
        assert url.startswith("https://")
        async with AgentClient(url, tls_ca=str(trusted)) as agent:
            assert (await agent.region_get("a")).id == "a"
        async with AgentClient(url) as wary:
            with pytest.raises(ServiceUnreachable, match="certificate"):
                await wary.region_get("a")
    assert ssl.HAS_SNI


@pytest.mark.parametrize("url", ["", "agent:17000", "ftp://agent", "http://", "http://agent/?x=1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="not the address of a service"):
        AgentClient(url)


@pytest.mark.parametrize("region_id", ["", ".", ".."])
async def test_an_id_that_would_be_another_path_is_not_sent(region_id: str) -> None:
    async with answering(lambda _: httpx2.Response(500)) as agent:
        with pytest.raises(UsageError, match="cannot be part of an address"):
            await agent.region_get(region_id)


@pytest.mark.parametrize(("data", "sentence"), [("!!", "not base64"), ("eHg=", "of 512 bytes with 2")])
async def test_a_bulk_read_of_something_else_is_refused(data: str, sentence: str) -> None:
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, json={"base64_encoded_data": data}))
    async with PantryClient("http://pantry", transport=transport) as pantry:
        with pytest.raises(RemoteError, match=sentence):
            await pantry.bulk_read("v", 0, 512)
