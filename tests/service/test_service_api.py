"""What all services have in common: envelope, version, paths, bodies, and who may come in."""

from __future__ import annotations

import enum
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import httpx2
import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from crucible_emu.errors import UsageError
from crucible_emu.service import Api, Call, Exposure, Knock, Operation, Refusal, Versions, application, serving
from crucible_emu.service.api import split_path
from crucible_emu.service.application import parse_body
from crucible_emu.service.exposure import read_token
from crucible_emu.service.versions import parse

TOKEN = "a-token-of-some-length"
BODY_BYTES_MAX = 200


class Colour(enum.Enum):
    RED = "red"


class Thing(BaseModel):
    id: UUID
    size: int
    colour: Colour = Colour.RED


async def show(call: Call) -> object:
    return {"id": call.path["id"], "query": dict(call.query), "version": list(call.version)}


async def make(call: Call) -> object:
    assert isinstance(call.body, Thing)
    return call.body


async def nothing(_: Call) -> object:
    return None


async def refuse(call: Call) -> object:
    raise Refusal(int(call.path["status"]), "there is no thing 7", "NoThing" if "code" in call.query else None)


async def fail(_: Call) -> object:
    raise ZeroDivisionError("the handler is wrong")


OPERATIONS = (
    Operation("show", "GET", "/things/{id}", show),
    Operation("newest_thing", "GET", "/things/newest", nothing, success=204),
    Operation("make", "POST", "/things", make, Thing, success=201),
    Operation("nothing", "DELETE", "/things/{id}", nothing, success=204),
    Operation("refuse", "POST", "/refuse/{status}", refuse),
    Operation("fail", "GET", "/fail", fail),
    Operation("late", "GET", "/late", nothing, since="2.0.0"),
)


def api(**settings: Any) -> Api:
    return Api("things", OPERATIONS, BODY_BYTES_MAX, **settings)


@asynccontextmanager
async def client(declared: Api, token: str | None = None) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=application(declared, token))
    async with httpx2.AsyncClient(transport=transport, base_url="http://things") as found:
        yield found


def check_envelope(response: httpx2.Response, status: int, message: str, code: str | None = None) -> None:
    assert response.status_code == status
    members = response.json()
    assert members.pop("request_id") == response.headers["x-request-id"]
    assert members.pop("error_code", None) == code
    assert message in members.pop("message")
    assert not members


# -- answers ----------------------------------------------------------------------------------------------------------


async def test_an_operation_gets_its_parameters_and_answers_in_its_form() -> None:
    async with client(api()) as asking:
        found = await asking.get("/things/a%2Fb%20c?x=1")
        assert found.json() == {"id": "a/b c", "query": {"x": "1"}, "version": [0, 0, 0]}
        assert found.headers["x-request-id"]
        assert (await asking.get("/things/newest")).status_code == 204, "a literal goes before a parameter"
        gone = await asking.delete("/things//7/")
        assert (gone.status_code, gone.content) == (204, b"")
        thing = {"id": "0d1e6c2e-4b3b-4c8e-9b2a-111111111111", "size": 3, "unknown": True}
        made = await asking.post("/things", json=thing)
        assert (made.status_code, made.json()["colour"]) == (201, "red")


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize(
    ("status", "hidden"), [(400, None), (404, "Not Found"), (410, None), (500, "Internal"), (503, "Service Unav")]
)
async def test_a_refusal_is_an_envelope_and_a_faithful_service_hides_some_reasons(
    status: int, hidden: str | None, faithful: bool
) -> None:
    async with client(api(faithful=faithful)) as asking:
        wanted = hidden if faithful and hidden else "there is no thing 7"
        check_envelope(await asking.post(f"/refuse/{status}"), status, wanted, "Internal" if status == 500 else None)
        check_envelope(await asking.post(f"/refuse/{status}?code"), status, wanted, "NoThing")


async def test_what_a_handler_did_not_mean_is_logged_and_answered_500(expect_log: Any) -> None:
    async with client(api()) as asking:
        with expect_log("request failed"):
            check_envelope(await asking.get("/fail"), 500, "Internal Server Error", "Internal")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/things/1/2", 404),
        ("PATCH", "/things/1", 405),
        ("HEAD", "/things/1", 405),
        ("GET", "/things/%zz", 400),
        ("GET", "/things/%ff", 400),
        ("GET", "/things/%2e%2e", 400),
    ],
)
async def test_paths_and_methods_that_are_none(method: str, path: str, status: int) -> None:
    async with client(api()) as asking:
        found = await asking.request(method, path)
        assert found.status_code == status
        assert found.headers["x-request-id"]


# -- versions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "lenient", "missing", "status"),
    [
        ("1.0.0", False, "refused", 200),
        ("2.0.0", False, "refused", 200),
        ("2.0.1", False, "refused", 400),
        ("3", False, "refused", 400),
        (None, False, "refused", 400),
        (None, True, "refused", 200),
        (None, False, "newest", 200),
        ("", True, "newest", 400),
    ],
)
async def test_the_version_header(header: str | None, lenient: bool, missing: Any, status: int) -> None:
    declared = api(versions=Versions(("1.0.0", "2.0.0"), missing), lenient=lenient)
    async with client(declared) as asking:
        found = await asking.get("/things/1", headers={} if header is None else {"api-version": header})
        assert found.status_code == status
        if status == 200:
            assert found.json()["version"] == list(parse(header or "2.0.0"))


async def test_an_operation_is_there_from_its_version_on() -> None:
    async with client(api(versions=Versions(("1.0.0", "2.0.0")))) as asking:
        assert (await asking.get("/late", headers={"api-version": "1.0.0"})).status_code == 404
        assert (await asking.get("/late", headers={"api-version": "2.0.0"})).status_code == 200


@given(st.text(max_size=20))
def test_a_version_is_three_numbers_or_an_error(text: str) -> None:
    with suppress(ValueError):
        assert len(parse(text)) == 3


# -- bodies -----------------------------------------------------------------------------------------------------------

GOOD = b'{"id": "0d1e6c2e-4b3b-4c8e-9b2a-111111111111", "size": 3}'


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b"", "application/json", "unable to parse"),
        (b"[", "application/json", "unable to parse"),
        (b"[" * 150, "application/json", "unable to parse"),
        (b"null", "application/json", "unable to parse"),
        (GOOD.replace(b": 3", b': "3"'), "application/json", "size"),
        (GOOD.replace(b"0d1e", b"xxxx"), "application/json", "id"),
        (b'{"size": "hunter2"}', "application/json", "size"),
        (b"\xff\xfe", "application/json", "unable to parse"),
        (GOOD, "text/plain", "expected content type"),
        (GOOD + b" " * BODY_BYTES_MAX, "application/json", "exceeded maximum size of 200 bytes"),
    ],
)
async def test_a_body_that_is_none_is_a_bad_request(body: bytes, content_type: str, message: str) -> None:
    async with client(api()) as asking:
        found = await asking.post("/things", content=body, headers={"content-type": content_type})
        check_envelope(found, 400, message)
        assert "hunter2" not in found.text, "it may be a key"


async def test_a_body_without_a_content_type_is_json() -> None:
    async with client(api()) as asking:
        request = asking.build_request("POST", "/things", content=GOOD)
        request.headers.pop("content-type", None)
        assert (await asking.send(request)).status_code == 201


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


class Owner(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


def test_a_refusal_does_not_quote_a_wrong_tag() -> None:
    with pytest.raises(Refusal) as caught:
        parse_body(Owner, b'{"pet": {"kind": "hunter2"}}')
    assert "hunter2" not in str(caught.value)
    assert "pet" in str(caught.value)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_body_or_a_refusal(body: bytes) -> None:
    with suppress(Refusal):
        assert isinstance(parse_body(Thing, body), Thing)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_path_or_a_refusal(raw: bytes) -> None:
    with suppress(Refusal):
        assert all(split_path(b"/" + raw))


# -- who may come in --------------------------------------------------------------------------------------------------


async def test_a_token_is_asked_of_everybody() -> None:
    async with client(api(), TOKEN) as asking:
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}):
            found = await asking.get("/things/1", headers=header)
            check_envelope(found, 401, "bearer token")
            assert found.headers["www-authenticate"] == "Bearer"
        assert (await asking.get("/things/1", headers={"authorization": f"bearer {TOKEN}"})).status_code == 200


async def test_a_web_page_may_look_and_change_nothing() -> None:
    async with client(api()) as asking:
        page = {"origin": "http://elsewhere.example"}
        assert (await asking.get("/things/1", headers=page)).status_code == 200
        assert (await asking.delete("/things/1", headers=page)).status_code == 403


async def test_a_service_that_knows_its_callers_asks_who_it_is_before_anything_else() -> None:
    knocks = []

    async def identify(knock: Knock) -> object:
        knocks.append(knock)
        if knock.authorization != "Bearer of-somebody":
            raise Refusal(401, "who is it?")
        return "somebody"

    async def whoever(call: Call) -> object:
        return {"caller": call.caller}

    asked = (Operation("who", "GET", "/who", whoever), *OPERATIONS)
    async with client(Api("things", asked, BODY_BYTES_MAX, identify=identify), TOKEN) as asking:
        for request in (("GET", "/who"), ("GET", "/no-such-path"), ("POST", "/things")):
            check_envelope(await asking.request(*request, content=b"{"), 401, "who is it?")
        found = await asking.get("/who", headers={"authorization": "Bearer of-somebody"})
        assert found.json() == {"caller": "somebody"}
    assert {each.peer for each in knocks} == {"127.0.0.1"} and "of-somebody" not in repr(knocks)


@pytest.mark.parametrize(
    "address",
    ["nonsense", "[::1]", "127.0.0.1:99999", "127.0.0.1:x", "localhost:80", "0.0.0.0:80", "[::]:80", "192.0.2.1:80"],
)
def test_addresses_that_are_none_or_are_open_to_strangers_are_refused(address: str) -> None:
    with pytest.raises(UsageError) as caught:
        Exposure(address).check()
    assert address in str(caught.value)


def test_beyond_loopback_takes_tls_and_a_token(tmp_path: Path) -> None:
    certificate, key = tmp_path / "c", tmp_path / "k"
    certificate.touch()
    key.touch()
    Exposure("0.0.0.0:0", certificate, key, TOKEN).check()
    Exposure("0.0.0.0:0", certificate, key).check(knows_callers=True)
    for bad in (
        Exposure("0.0.0.0:0", certificate, key),
        Exposure("0.0.0.0:0", token=TOKEN),
        Exposure("127.0.0.1:0", certificate),
        Exposure("127.0.0.1:0", certificate, tmp_path / "missing"),
        Exposure("127.0.0.1:0", token="short"),
    ):
        with pytest.raises(UsageError):
            bad.check()
    with pytest.raises(UsageError):
        Exposure("0.0.0.0:0").check(knows_callers=True)


def test_a_token_is_one_word_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(f"  {TOKEN}\n")
    assert read_token(path) == TOKEN
    assert read_token(None) is None
    path.write_text("two words")
    for bad in (path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="token"):
            read_token(bad)
    assert TOKEN not in repr(Exposure(token=TOKEN))


# -- on a socket ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0"])
async def test_a_service_on_a_socket(address: str) -> None:
    async with serving(api(), Exposure(address)) as url, httpx2.AsyncClient(base_url=url) as asking:
        assert (await asking.get("/things/1")).json()["id"] == "1"
        assert (await asking.get("/things/%zz")).status_code == 400
        with pytest.raises(UsageError, match="cannot listen"):
            async with serving(api(), Exposure(url.removeprefix("http://"))):
                raise AssertionError("two services at one address")


async def test_a_service_with_tls_and_a_token(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    certificate, key, root = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "root.pem"
    issued.cert_chain_pems[0].write_to_path(str(certificate))
    issued.private_key_pem.write_to_path(str(key))
    authority.cert_pem.write_to_path(str(root))
    exposure = Exposure("127.0.0.1:0", certificate, key, TOKEN)
    context = ssl.create_default_context(cafile=str(root))
    async with serving(api(), exposure) as url, httpx2.AsyncClient(base_url=url, verify=context) as asking:
        assert url.startswith("https://")
        assert (await asking.get("/things/1")).status_code == 401
        assert (await asking.get("/things/1", headers={"authorization": f"Bearer {TOKEN}"})).status_code == 200
