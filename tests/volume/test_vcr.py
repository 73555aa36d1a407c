"""The volume construction request: the real documents both ways, refusals with place and without key, addresses."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
from disk_rig import KEY
from hypothesis import given
from hypothesis import strategies as st

from crucible_emu.errors import UsageError
from crucible_emu.logs import get_logger
from crucible_emu.volume import construction, vcr

PLAIN_DISK = """
{ "type": "volume", "id": "6a1f3c52-0c1e-4a57-9d55-0a2a6bb6f001", "block_size": 512,
  "sub_volumes": [
    { "type": "region", "block_size": 512, "blocks_per_extent": 131072, "extent_count": 160, "gen": 1,
      "opts": {
        "id": "6a1f3c52-0c1e-4a57-9d55-0a2a6bb6f001",
        "target": ["[fd00:1122:3344:102::8]:19004", "[fd00:1122:3344:101::7]:19003", "[fd00:1122:3344:104::8]:19000"],
        "lossy": false, "flush_timeout": null, "key": "tCw7zw0hAsPuxMOTWwnPEFYjBK9qJRtYyGdEXKEnrg0=",
        "cert_pem": null, "key_pem": null, "root_cert_pem": null, "control": null, "read_only": false } } ],
  "read_only_parent": null }
"""

FROM_A_SNAPSHOT = """
{ "type": "volume", "id": "b1000000-0000-4000-8000-000000000001", "block_size": 512,
  "sub_volumes": [
    { "type": "region", "block_size": 512, "blocks_per_extent": 131072, "extent_count": 320, "gen": 4,
      "opts": { "id": "b1000000-0000-4000-8000-000000000001",
        "target": ["[fd00::11]:19001", "[fd00::12]:19001", "[fd00::13]:19001"],
        "lossy": false, "key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "read_only": false } } ],
  "read_only_parent": {
    "type": "volume", "id": "b1000000-0000-4000-8000-000000000002", "block_size": 512,
    "sub_volumes": [
      { "type": "region", "block_size": 512, "blocks_per_extent": 131072, "extent_count": 160, "gen": 4,
        "opts": { "id": "b1000000-0000-4000-8000-000000000003",
          "target": ["[fd00::21]:19020", "[fd00::22]:19020", "[fd00::23]:19020"],
          "lossy": false, "key": "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", "read_only": true } } ],
    "read_only_parent": null } }
"""

FROM_AN_IMAGE = """
{ "type": "volume", "id": "c1000000-0000-4000-8000-000000000001", "block_size": 512,
  "sub_volumes": [
    { "type": "region", "block_size": 512, "blocks_per_extent": 131072, "extent_count": 64, "gen": 1,
      "opts": { "id": "c1000000-0000-4000-8000-000000000001",
        "target": ["[fd00::31]:19001", "[fd00::32]:19001", "[fd00::33]:19001"],
        "lossy": false, "key": "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=", "read_only": false } } ],
  "read_only_parent": {
    "type": "volume", "id": "c1000000-0000-4000-8000-000000000002", "block_size": 512,
    "sub_volumes": [
      { "type": "region", "block_size": 512, "blocks_per_extent": 131072, "extent_count": 64, "gen": 1,
        "opts": { "id": "c1000000-0000-4000-8000-000000000003",
          "target": ["[fd00::41]:19040", "[fd00::42]:19040", "[fd00::43]:19040"],
          "lossy": false, "key": "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=", "read_only": true } } ],
    "read_only_parent": {
      "type": "volume", "id": "c1000000-0000-4000-8000-000000000004", "block_size": 512,
      "sub_volumes": [
        { "type": "url", "id": "c1000000-0000-4000-8000-000000000005", "block_size": 512,
          "url": "http://images.example/alpine.raw" } ],
      "read_only_parent": null } } }
"""

DOCUMENTS = {"plain disk": PLAIN_DISK, "from a snapshot": FROM_A_SNAPSHOT, "from an image": FROM_AN_IMAGE}


def region(**changes: Any) -> dict[str, Any]:
    """A small region set; ``changes`` whose name begins with ``opts_`` go into its options."""
    opts: dict[str, Any] = {
        "id": "6a1f3c52-0c1e-4a57-9d55-0a2a6bb6f001",
        "target": ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"],
        "lossy": False,
        "read_only": False,
    }
    members: dict[str, Any] = {
        "type": "region",
        "block_size": 512,
        "blocks_per_extent": 8,
        "extent_count": 4,
        "gen": 1,
        "opts": opts,
    }
    for name, value in changes.items():
        (opts if name.startswith("opts_") else members)[name.removeprefix("opts_")] = value
    return members


def volume(*sub_volumes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    members = {"type": "volume", "id": "6a1f3c52-0c1e-4a57-9d55-0a2a6bb6f009", "block_size": 512}
    return {**members, "sub_volumes": list(sub_volumes), "read_only_parent": None, **changes}


def parse(members: Any) -> Any:
    return vcr.parse(json.dumps(members))


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


# -- both ways --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_real_documents_survive_both_ways(name: str) -> None:
    request = vcr.parse(DOCUMENTS[name])
    written = vcr.dumps(request)
    assert vcr.parse(written) == request
    assert without_nulls(json.loads(written)) == without_nulls(json.loads(DOCUMENTS[name]))


def test_what_is_written_has_every_member() -> None:
    assert json.loads(vcr.dumps(vcr.parse(PLAIN_DISK))) == json.loads(PLAIN_DISK)
    opts = json.loads(vcr.dumps(parse(region())))["opts"]
    assert {name for name, value in opts.items() if value is None} == {
        *("flush_timeout", "key", "cert_pem", "key_pem", "root_cert_pem", "control"),
    }


def test_every_kind_of_request_by_itself() -> None:
    base = {"id": "6a1f3c52-0c1e-4a57-9d55-0a2a6bb6f001", "block_size": 512}
    for members in ({"type": "url", "url": "http://x/", **base}, {"type": "file", "path": "/x", **base}, region()):
        assert without_nulls(json.loads(vcr.dumps(parse(members)))) == members


def test_unknown_members_are_ignored_everywhere() -> None:
    plain = volume(region(), read_only_parent=region())
    noisy = volume(
        region(opts_colour="red", shade=1), read_only_parent=region(opts_more={"key": 1}), sub_volume_count=[1]
    )
    assert parse(noisy) == parse(plain)


ports = st.integers(1, 65535)
numbers = st.integers(0, 2**64 - 1)


@given(
    gen=numbers,
    block_size=st.sampled_from([1 << shift for shift in range(9, 16)]),
    blocks=st.integers(1, 2**40),
    extents=st.integers(1, 2**32 - 1),
    targets=st.lists(st.tuples(st.ip_addresses(v=4) | st.ip_addresses(v=6), ports), min_size=3, max_size=3),
    timeout=st.none() | st.floats(0.001, 1e6),
    flags=st.tuples(st.booleans(), st.booleans()),
)
def test_any_region_survives_both_ways(
    gen: int, block_size: int, blocks: int, extents: int, targets: list[Any], timeout: Any, flags: tuple[bool, bool]
) -> None:
    written = [f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}" for host, port in targets]
    members = region(
        gen=gen,
        block_size=block_size,
        blocks_per_extent=blocks,
        extent_count=extents,
        opts_target=written,
        opts_flush_timeout=timeout,
        opts_lossy=flags[0],
        opts_read_only=flags[1],
    )
    request = parse(members)
    assert [vcr.parse_address(target) for target in request.opts.target] == [(str(h), p) for h, p in targets]
    assert without_nulls(json.loads(vcr.dumps(request))) == without_nulls(members)


# -- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("127.0.0.1:9000", ("127.0.0.1", 9000)),
        ("[::1]:1", ("::1", 1)),
        ("[fd00:1122:3344:102::8]:65535", ("fd00:1122:3344:102::8", 65535)),
    ],
)
def test_addresses(text: str, found: tuple[str, int]) -> None:
    assert vcr.parse_address(text) == found


def test_a_target_may_be_a_unix_socket() -> None:
    targets = ("/run/r0", "127.0.0.1:9000", "/" + "x" * 106)
    assert parse(region(opts_target=list(targets))).opts.target == targets


@pytest.mark.parametrize("path", ["/" + "x" * 107, "/run/\0"])
def test_what_is_no_path_of_a_unix_socket_is_refused_by_name(path: str) -> None:
    with pytest.raises(UsageError, match=r"opts\.target: .* is no path of a unix socket") as refused:
        parse(region(opts_target=["127.0.0.1:1", path, "127.0.0.1:3"]))
    one_sentence(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "127.0.0.1", "127.0.0.1:", ":9000", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:-1"),
        *("127.0.0.1:9 000", "127.0.0.1:٣", "::1:9000", "[::1]", "[::1:9000", "[]:1", "[127.0.0.1:80", "::1]:9000"),
        *("some host:1", "..:1", "a" * 300 + ":1", "fd00::g:1", "[fd00::g]:1", "[name]:1"),
    ],
)
def test_what_is_no_address_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address"):
        vcr.parse_address(text)
    with pytest.raises(UsageError, match=r"opts\.target") as refused:
        parse(region(opts_target=["127.0.0.1:1", text, "127.0.0.1:3"]))
    one_sentence(refused.value)


# -- refusals ---------------------------------------------------------------------------------------------------------


def one_sentence(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text and text.strip() == text and len(text) < 400, text
    return text


REFUSALS: list[tuple[Any, str]] = [
    ([], "the document"),
    ("volume", "the document"),
    (None, "the document"),
    (17, "the document"),
    ({}, "the document"),
    ({"type": "tape"}, "tape"),
    (region(block_size=500), "block_size"),
    (region(block_size=1 << 20), "block_size"),
    (region(block_size="large"), "block_size"),
    (region(blocks_per_extent=0), "blocks_per_extent"),
    (region(blocks_per_extent=-8), "blocks_per_extent"),
    (region(extent_count=0), "extent_count"),
    (region(extent_count=2**32), "extent_count"),
    (region(gen=-1), "gen"),
    (region(gen=2**64), "gen"),
    (region(gen=None), "gen"),
    (region(opts=None), "opts"),
    (region(opts_id="nobody"), "opts.id"),
    (region(opts_target=[]), "opts.target"),
    (region(opts_target=["127.0.0.1:1"] * 2), "opts.target"),
    (region(opts_target=["127.0.0.1:1"] * 4), "opts.target"),
    (region(opts_target="127.0.0.1:1"), "opts.target"),
    (region(opts_read_only="perhaps"), "opts.read_only"),
    (region(opts_flush_timeout="soon"), "opts.flush_timeout"),
    (region(opts_flush_timeout=-0.5), "opts.flush_timeout"),
    (region(opts_flush_timeout=float("nan")), "opts.flush_timeout"),
    (region(opts_flush_timeout=float("inf")), "opts.flush_timeout"),
    (region(opts_lossy="false"), "opts.lossy"),
    (region(extent_count="4"), "extent_count"),
    (region(extent_count=4.5), "extent_count"),
    (region(gen=True), "gen"),
    (region(opts_key=[KEY]), "opts.key"),
    (region(opts_key={"base64": KEY}), "opts.key"),
    (volume(region(), block_size=3), "block_size"),
    (volume(region(), region(gen=-1)), "sub_volumes.1.region.gen"),
    (volume(region(), read_only_parent=volume(region(opts_id=1))), "read_only_parent.volume.sub_volumes.0.region.opts"),
    (volume(region(), sub_volumes=None), "sub_volumes"),
    (volume({"type": "file", "id": "x", "block_size": 512, "path": "/"}), "sub_volumes.0.file.id"),
]


@pytest.mark.parametrize("name", ["lossy", "read_only"])
def test_a_document_has_what_the_real_one_requires_and_code_may_leave_it_out(name: str) -> None:
    members = region()
    del members["opts"][name]
    with pytest.raises(UsageError, match=f"opts: {name} is missing: write true or false"):
        vcr.parse(json.dumps(members))
    made = vcr.CrucibleOpts(id=members["opts"]["id"], target=tuple(members["opts"]["target"]))
    assert made.model_dump()[name] is False


@pytest.mark.parametrize(("members", "place"), REFUSALS, ids=lambda value: value if isinstance(value, str) else "")
def test_a_refusal_names_the_document_and_the_place(members: Any, place: str) -> None:
    with pytest.raises(UsageError) as refused:
        vcr.parse(json.dumps(members), "disk.json")
    sentence = one_sentence(refused.value)
    assert sentence.startswith("disk.json: ")
    assert place in sentence
    assert KEY not in sentence


@pytest.mark.parametrize("member", ["type", "block_size", "blocks_per_extent", "extent_count", "gen", "opts"])
def test_a_member_that_is_missing_is_named(member: str) -> None:
    members = region()
    del members[member]
    with pytest.raises(UsageError, match=member if member != "type" else "discriminator|type"):
        parse(members)


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"{", b"\xff\xfe{}", b'{"type": "volume"', b"not json", b"NaN"),
        pytest.param(b"[" * 100_000, id="deep"),
        pytest.param(b'{"a":' * 100_000, id="deep objects"),
    ],
)
def test_a_text_that_is_no_document_is_refused(text: bytes) -> None:
    with pytest.raises(UsageError, match="the VCR") as refused:
        vcr.parse(text)
    one_sentence(refused.value)


def test_volumes_nested_without_end_are_refused() -> None:
    members = region()
    for _ in range(400):
        members = volume(members)
    with pytest.raises(UsageError) as refused:
        parse(members)
    one_sentence(refused.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.json: no such file") as refused:
        vcr.load(tmp_path / "none.json")
    one_sentence(refused.value)
    (tmp_path / "disk.json").write_text(PLAIN_DISK)
    assert vcr.load(tmp_path / "disk.json") == vcr.parse(PLAIN_DISK)


# -- the key ----------------------------------------------------------------------------------------------------------


def shown(request: Any) -> list[str]:
    return [repr(request), str(request), f"{request}", f"{request.opts!r}", f"{request.opts.key}", repr(vars(request))]


def test_the_key_never_shows() -> None:
    request = parse(region(opts_key=KEY))
    assert request.opts.key.get_secret_value() == KEY
    for text in shown(request):
        assert KEY not in text and KEY[:12] not in text


def test_the_key_never_reaches_a_log(caplog: pytest.LogCaptureFixture) -> None:
    request = parse(volume(region(opts_key=KEY)))
    log = get_logger("crucible_emu.volume")
    with caplog.at_level(logging.DEBUG):
        log.info("attaching", request=request, document=json.loads(vcr.dumps(request)), region=request.sub_volumes[0])
    (record,) = [record for record in caplog.records if record.getMessage() == "attaching"]
    assert KEY not in repr(vars(record))


def test_two_requests_with_different_keys_differ_and_stay_secret_when_copied() -> None:
    one, other = parse(region(opts_key=KEY)), parse(region(opts_key=KEY[::-1]))
    assert one != other
    assert all(KEY not in text for text in shown(one.model_copy(deep=True)))
    assert pickle.loads(pickle.dumps(one)) == one


@pytest.mark.parametrize("key", ["", "short", KEY[:-4], KEY + KEY, KEY.replace("A", "*", 1), "ä" * 44])
def test_a_key_that_is_none_is_refused_when_the_disk_is_built_and_not_shown(key: str) -> None:
    request = parse(region(opts_key=key))
    with pytest.raises(UsageError, match="key") as refused:
        construction.build(request)
    sentence = one_sentence(refused.value)
    assert not key or key not in sentence


# -- what can be built ------------------------------------------------------------------------------------------------


def test_the_targets_of_a_document_are_those_of_its_sub_volumes() -> None:
    other = ["127.0.0.2:1", "127.0.0.2:2", "127.0.0.2:3"]
    mine = region()["opts"]["target"]
    assert vcr.targets(parse(region())) == mine
    tree = volume(volume(region(opts_target=other)), region(), read_only_parent=region(opts_target=mine[::-1]))
    assert vcr.targets(parse(tree)) == other + mine
    assert vcr.targets(parse({"type": "file", "id": tree["id"], "block_size": 512, "path": "/x"})) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"blocks_per_extent": 2**40}, "extent size"),
        ({"opts_target": ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:1"]}, "twice"),
        ({"opts_cert_pem": "/none/cert.pem"}, "all three"),
        (
            {
                "opts_cert_pem": "/none/cert.pem",
                "opts_key_pem": "/none/key.pem",
                "opts_root_cert_pem": "/none/root.pem",
            },
            "/none/cert.pem",
        ),
    ],
)
def test_a_document_that_cannot_be_built_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence) as refused:
        construction.build(parse(region(**changes)))
    one_sentence(refused.value)
