"""One image through every service of a sled: each copy of it has the same digest, and it mounts."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from uuid import uuid4

import nbd_real_clients as real
import pytest
import trio
from image_server import image_server
from sled_rig import (
    EXTENT_BYTES,
    REPAIR_PORT_OFFSET,
    Service,
    Sled,
    address,
    encoded,
    region_set,
    sled,
    start_instance,
    stop_instance,
    volume,
    wait_for,
)

from crucible_emu.nbd import parse_uri

pytestmark = pytest.mark.real_client

EXTENTS = 8
SIZE_BYTES = EXTENTS * EXTENT_BYTES
Content = dict[str, bytes]
TAKEN_OVER = frozenset({"another Upstairs took over", "disk disabled", "acknowledged writes may be lost"})


def make_image(folder: Path, program: Callable[[str], str]) -> tuple[Path, Content]:
    """An ext4 image of the volume's size with files in it, made without mounting anything."""
    content = {f"file{number}": os.urandom(1 + number * number * 401) for number in range(40)}
    tree, image = folder / "tree", folder / "image.raw"
    tree.mkdir()
    for name, data in content.items():
        (tree / name).write_bytes(data)
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    subprocess.run([program("mkfs.ext4"), "-q", "-F", "-b", "4096", "-d", tree, image], check=True, capture_output=True)
    return image, content


def import_by_url(rack: Sled, request: dict[str, object], image: bytes, snapshot_id: str) -> None:
    """Through the pantry: attach, import with a digest, validate, snapshot, detach."""
    volume_id = request["id"]
    pantry = rack.pantry
    digest = {"sha256": hashlib.sha256(image).hexdigest()}

    async def main() -> None:
        async with image_server(image) as server:
            wanted = {"url": server.url, "expected_digest": digest}
            job = await trio.to_thread.run_sync(pantry.post, f"/volume/{volume_id}/import-from-url", wanted)
            assert await trio.to_thread.run_sync(rack.job, job["job_id"]), "the import has the image's digest"

    pantry.post(f"/volume/{volume_id}", {"volume_construction_request": request})
    trio.run(main)
    assert rack.job(pantry.post(f"/volume/{volume_id}/validate", {"expected_digest": digest})["job_id"])
    pantry.post(f"/volume/{volume_id}/snapshot", {"snapshot_id": snapshot_id}, status=204)
    pantry.delete(f"/volume/{volume_id}", status=204)


def mounted_files(bench: real.Bench) -> Content:
    """As root: the files of the export's file system, through a loop device; the journal is written to."""
    with real.as_loop_device(bench) as loop, real.mounted(bench, loop) as where:
        return {path.name: path.read_bytes() for path in where.iterdir() if path.is_file()}


def test_an_image_is_imported_snapshotted_cloned_attached_and_mounted(
    tmp_path: Path, require_program: Callable[[str], str], require_libnbd: Callable[[], ModuleType]
) -> None:
    image, content = make_image(tmp_path, require_program)
    snapshot_id = str(uuid4())
    with sled(tmp_path, agents=4, hosts=1) as rack:
        source = rack.regions(EXTENTS)
        import_by_url(
            rack,
            volume(region_set([each["port_number"] for each in source], EXTENTS, gen=1)),
            image.read_bytes(),
            snapshot_id,
        )
        # Running snapshots on the three agents, and a clone of one of them on the fourth.
        running = [rack.run_snapshot(agent, each["id"], snapshot_id) for agent, each in zip(rack.agents, source)]
        clone = rack.region(rack.agents[3], EXTENTS, source=address(running[0]["port_number"] + REPAIR_PORT_OFFSET))
        assert clone["read_only"]
        digests = {
            rack.digest(agent, f"/regions/{each['id']}{what}")
            for agent, each in zip(rack.agents, source)
            for what in ("", f"/snapshots/{snapshot_id}")
        }
        digests.add(rack.digest(rack.agents[3], f"/regions/{clone['id']}"))
        assert len(digests) == 1, "regions, snapshots and the clone are the same bytes"
        # A disk on fresh regions over two running snapshots and the clone.
        fresh = rack.regions(EXTENTS)
        parent_ports = [clone["port_number"], running[1]["port_number"], running[2]["port_number"]]
        request = volume(
            region_set([each["port_number"] for each in fresh], EXTENTS, gen=1),
            region_set(parent_ports, EXTENTS, gen=1, read_only=True),
        )
        uris = start_instance(rack.hosts[0], {"disk": request})
        bench = real.Bench(parse_uri(uris["disk"]), require_program, require_libnbd, tmp_path)
        bench.run("nbdcopy", uris["disk"], "back.raw")
        assert (tmp_path / "back.raw").read_bytes() == image.read_bytes()
        assert mounted_files(bench) == content
        stop_instance(rack.hosts[0])
        # What is left goes: nothing may hold on to anything.
        for agent, each in zip(rack.agents, source):
            agent.delete(f"/regions/{each['id']}/snapshots/{snapshot_id}/run", status=204)
            wait_for(lambda a=agent, e=each: stopped(a, e["id"], snapshot_id), "the running snapshot to stop")
            agent.delete(f"/regions/{each['id']}/snapshots/{snapshot_id}", status=204)
        for agent, each in [*zip(rack.agents, source), *zip(rack.agents, fresh), (rack.agents[3], clone)]:
            agent.delete(f"/regions/{each['id']}", status=204)
            wait_for(lambda a=agent, e=each: a.get(f"/regions/{e['id']}")["state"] == "destroyed", "the region to go")
        assert not [path for number in range(4) for path in (tmp_path / f"agent{number}" / "regions").iterdir()]


def stopped(agent: object, region_id: str, name: str) -> bool:
    found = agent.get(f"/regions/{region_id}/snapshots")["running_snapshots"]  # type: ignore[attr-defined]
    return name not in found or found[name]["state"] == "destroyed"


def test_pantry_and_host_fight_over_a_volume_by_generation(
    tmp_path: Path, require_program: Callable[[str], str], require_libnbd: Callable[[], ModuleType]
) -> None:
    """Each takes the volume from the other, with no detach in between. The loser says so, no write is lost."""
    chunk = 128 * 1024
    with sled(tmp_path, hosts=1, warned=TAKEN_OVER) as rack:
        ports = [each["port_number"] for each in rack.regions(2)]
        volume_id, pantry, host = str(uuid4()), rack.pantry, rack.hosts[0]

        def request(generation: int) -> dict[str, object]:
            return volume(region_set(ports, 2, gen=generation), volume_id=volume_id)

        written = {}
        pantry.post(f"/volume/{volume_id}", {"volume_construction_request": request(1)})
        for number in range(4):
            written[number] = os.urandom(chunk)
            body = {"offset": number * chunk, "base64_encoded_data": encoded(written[number])}
            pantry.post(f"/volume/{volume_id}/bulk-write", body, status=204)
        uris = start_instance(host, {"disk": request(2)})
        # The loser: it was active once and is not any more.
        wait_for(lambda: not pantry.get(f"/volume/{volume_id}")["active"], "the pantry to notice")
        assert pantry.get(f"/volume/{volume_id}")["seen_active"]
        late = {"offset": 0, "base64_encoded_data": encoded(bytes(chunk))}
        pantry.post(f"/volume/{volume_id}/bulk-write", late, status=410)
        bench = real.Bench(parse_uri(uris["disk"]), require_program, require_libnbd, tmp_path)
        bench.run("nbdcopy", uris["disk"], "first.raw")
        found = (tmp_path / "first.raw").read_bytes()
        assert all(found[n * chunk : (n + 1) * chunk] == data for n, data in written.items()), "acknowledged is there"
        pantry.delete(f"/volume/{volume_id}", status=204)
        # And back: now the host loses it.
        pantry.post(f"/volume/{volume_id}", {"volume_construction_request": request(3)})
        wait_for(lambda: not active(host), "the host to notice")
        for number, data in written.items():
            body = {"offset": number * chunk, "size": chunk}
            answer = pantry.post(f"/volume/{volume_id}/bulk-read", body)
            assert answer["base64_encoded_data"] == encoded(data)
        pantry.delete(f"/volume/{volume_id}", status=204)
        stop_instance(host)


def active(host: Service) -> bool:
    """Whether the host's disk is active, by its volume information."""
    (upstairs,) = host.get("/instance/disk/disk/status")["volume_info"]["volume"]["sub_volumes"]
    return bool(upstairs["upstairs"]["state"] == "active")
