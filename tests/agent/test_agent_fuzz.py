"""Any requests in any order: never a 500, never an answer of another shape, and the agent is well afterwards."""

from __future__ import annotations

import json
import random
from pathlib import Path
from urllib.parse import quote

import pytest
from agent_rig import REGIONS, VERSION, A, B, serving_agent, wish

from crucible_emu.agent import documents

REQUESTS = 400
NAMES = ["s", "monday", "..", "%", "a/b", ".zfs", "\0", "é", "x" * 300, "", "run", "digest"]
IDS = [A, B, A.upper(), "x", "../..", "regions", "\0", "é" * 100, ""]
NUMBERS = [
    0,
    1,
    4,
    512,
    513,
    4096,
    65_536,
    65_537,
    2**31,
    2**32 - 1,
    2**32,
    2**64 - 1,
    2**64,
    -1,
    1.5,
    "512",
    None,
    True,
]
TEXTS = [None, "", "x", "x" * 5000, 7, "127.0.0.1:1", "[::1]:2", "[::1%lo]:2", "::1", "127.0.0.1:99999"]


def path(rng: random.Random) -> str:
    parts = [
        quote(rng.choice(IDS), safe=""),
        "snapshots",
        quote(rng.choice(NAMES), safe=""),
        rng.choice(["run", "digest"]),
    ]
    return "/".join([REGIONS, *parts[: rng.randrange(5)]]) + ("/digest" if rng.random() < 0.1 else "")


def body(rng: random.Random) -> bytes:
    members = wish(rng.choice(IDS))
    for name in rng.sample(["block_size", "extent_size", "extent_count", "encrypted"], rng.randrange(3)):
        members[name] = rng.choice(NUMBERS)
    for name in rng.sample(["cert_pem", "key_pem", "root_pem", "source"], rng.randrange(3)):
        members[name] = rng.choice(TEXTS)
    if rng.random() < 0.2:
        del members[rng.choice(list(members))]
    text = json.dumps(members).encode()
    return rng.choice([b"", b"[]", b"null", text[:-1], b"\xff" + text, text * 40]) if rng.random() < 0.2 else text


@pytest.mark.parametrize("seed", range(2))
async def test_any_requests(tmp_path: Path, expect_log, seed: int) -> None:
    expect_log("region not made", at_least=0)
    expect_log("downstairs ended", at_least=0)
    rng = random.Random(seed)
    async with serving_agent(tmp_path) as served:
        for _ in range(REQUESTS):
            method = rng.choice(["GET", "POST", "POST", "DELETE", "PUT"])
            where = REGIONS if method == "POST" and rng.random() < 0.8 else path(rng)
            answer = await served.http.request(method, where, content=body(rng), headers=VERSION)
            told = f"{method} {where}: {answer.status_code} {answer.text}"
            assert answer.status_code in (200, 204, 400, 404, 405, 409, 503), told
            assert "x-request-id" in answer.headers, told
            if answer.status_code >= 400:
                assert answer.json()["request_id"] == answer.headers["x-request-id"], told
        for region in (await served.http.get(REGIONS, headers=VERSION)).json():
            documents.Region.model_validate_json(json.dumps(region), strict=True)
        fresh = f"{seed:08}-0000-4000-8000-{0:012}"
        await served.made(fresh)
        await served.removed(fresh)
