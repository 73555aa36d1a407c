"""Whether services on other machines answer: asked over real HTTP, here on loopback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trustme

from crucible_emu.errors import UsageError
from crucible_emu.rack import reach
from crucible_emu.rack.document import RackFile, SledElsewhere
from crucible_emu.service import Api, Call, Exposure, Operation, Refusal, Versions, serving

RACK = RackFile((SledElsewhere("far"),))


async def regions(_call: Call) -> object:
    return []


async def no_instance(_call: Call) -> object:
    raise Refusal(404, "there is no instance")


def agent(answer: Any = regions) -> Api:
    operation = Operation("region_list", "GET", "/crucible/0/regions", answer)
    return Api("agent", [operation], 1024, versions=Versions(("1.0.0",), missing="refused"))


async def look(kind: str, url: str, rack: RackFile = RACK, root: Path = Path()) -> str:
    service = {"kind": kind, "url": url, "state": "elsewhere"}
    await reach.look(rack, root, [service])
    return service["state"]


async def test_who_answers_is_ready_and_who_does_not_is_unreachable() -> None:
    async with serving(agent(), Exposure()) as url:
        assert await look("agent", url) == "ready"
        assert await look("pantry", url) == "answers 400"
    assert await look("agent", url) == "unreachable"


async def test_a_host_without_an_instance_is_ready() -> None:
    host = Api("host", [Operation("instance_get", "GET", "/instance", no_instance)], 1024)
    async with serving(host, Exposure()) as url:
        assert await look("host", url) == "ready"


async def test_a_token_is_not_sent_in_the_clear(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-token-of-good-length\n")
    rack = RackFile((SledElsewhere("far"),), token_file="token")
    async with serving(agent(), Exposure(token="a-token-of-good-length")) as url:
        assert await look("agent", url, rack, tmp_path) == "token refused"


async def test_over_tls_the_token_is_sent(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("::1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "token").write_text("a-token-of-good-length\n")
    exposure = Exposure("[::1]:0", tmp_path / "cert.pem", tmp_path / "key.pem", "a-token-of-good-length")
    sleds = (SledElsewhere("far"),)
    async with serving(agent(), exposure) as url:
        assert await look("agent", url, RackFile(sleds, token_file="token", ca_file="ca.pem"), tmp_path) == "ready"
        assert await look("agent", url, RackFile(sleds, token_file="token"), tmp_path) == "unreachable"


async def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the token file .* cannot be read"):
        await look("agent", "http://[::1]:1", RackFile((), token_file="none"), tmp_path)
    with pytest.raises(UsageError, match="the certificates in none cannot be used"):
        await look("agent", "http://[::1]:1", RackFile((), ca_file="none"), tmp_path)
