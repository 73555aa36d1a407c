"""Any requests in any order: nothing ends in a failure that nobody foresaw, and the pantry forgets nothing and nobody.

A log record of a failure fails the test by itself (``log_check``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pantry_rig import BLOCK, CHUNK, SIZE, attach_body, running_pantry, volume_of, write_body

from crucible_emu.volume.vcr import FileRequest

VOLUMES, JOBS = ("v", "w"), ("j", "v", "k")
EXAMPLES = settings.default.max_examples if settings.default is not None else 100
NUMBERS = st.sampled_from([0, 1, BLOCK, CHUNK, CHUNK + 1, SIZE - BLOCK, SIZE, 2**63, 2**64 - BLOCK, 2**64, -1])
ANY_JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
SHA256 = st.sampled_from(["0" * 64, "F" * 64, "", "x"])
DIGEST = st.none() | st.fixed_dictionaries({"sha256": SHA256})


def document(number: int) -> Any:
    """A volume over a file, whose path is filled in later."""
    part = FileRequest(type="file", id=UUID(int=1), block_size=BLOCK, path=f"FILE{number}")
    return attach_body(volume_of(part, volume_id=UUID(int=number)))


DOCUMENTS = st.integers(1, 4).map(document)
ROUTES: dict[str, st.SearchStrategy[Any]] = {
    "": DOCUMENTS,
    "/background": st.builds(lambda body, job: body | {"job_id": job}, DOCUMENTS, st.sampled_from(JOBS)),
    "/replace": DOCUMENTS,
    "/import-from-url": st.fixed_dictionaries({"url": st.just("http://127.0.0.1:1/x"), "expected_digest": DIGEST}),
    "/snapshot": st.fixed_dictionaries({"snapshot_id": st.text(max_size=5)}),
    "/bulk-write": st.builds(write_body, NUMBERS, st.sampled_from([b"", b"x", bytes(BLOCK), bytes(CHUNK)])),
    "/bulk-read": st.fixed_dictionaries({"offset": NUMBERS, "size": NUMBERS}),
    "/scrub": st.none(),
    "/validate": st.fixed_dictionaries({"expected_digest": DIGEST, "size_to_validate": st.none() | NUMBERS}),
}


def posts(route: str) -> st.SearchStrategy[tuple[str, str, Any]]:
    path = st.sampled_from([f"/volume/{volume}{route}" for volume in VOLUMES])
    return st.tuples(st.just("POST"), path, ROUTES[route] | ANY_JSON)


VOLUME = st.sampled_from([f"/volume/{volume}" for volume in VOLUMES])
JOB = st.sampled_from([f"/job/{job}{what}" for job in JOBS for what in ("", "/ok", "/is-finished")])
REQUESTS = st.one_of(
    *(posts(route) for route in ROUTES),
    posts(""),
    st.tuples(st.just("GET"), st.just("") | VOLUME | JOB, st.none()),
    st.tuples(st.just("DELETE"), VOLUME, st.none()),
)


@settings(
    max_examples=max(10, EXAMPLES // 2),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(REQUESTS, max_size=12))
async def test_any_requests_in_any_order(tmp_path: Path, requests: list[tuple[str, str, Any]]) -> None:
    for number in (1, 2, 3):  # the fourth is not there
        (tmp_path / f"FILE{number}").write_bytes(bytes(SIZE))
    async with running_pantry() as caller:
        for method, path, body in requests:
            answer = await caller.call(method, path, with_paths(body, tmp_path))
            assert answer.status < 500
        status = await caller.do("GET", "")
        for volume in VOLUMES:
            answer = await caller.call("GET", f"/volume/{volume}")
            assert (answer.status == 200) == (volume in status["volumes"])
            await caller.detach(volume)
        assert await caller.do("GET", "") == {"volumes": [], "num_job_handles": 0}
        assert not caller.pantry.held


def with_paths(body: Any, folder: Path) -> Any:
    """The body with the files of this test."""
    if isinstance(body, dict):
        return {name: with_paths(each, folder) for name, each in body.items()}
    if isinstance(body, list):
        return [with_paths(each, folder) for each in body]
    return str(folder / body) if isinstance(body, str) and body.startswith("FILE") else body
