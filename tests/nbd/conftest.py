"""Fixtures of the NBD door: certificates, and a server for programs from outside."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme
from nbd_door import Certificates, Running, running

from crucible_emu.blockio import BlockDevice
from crucible_emu.blockio_memory import MemoryDevice
from crucible_emu.nbd import Export


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("pki")
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    client = authority.issue_cert("client.example")
    authority.cert_pem.write_to_path(folder / "ca-cert.pem")
    client.private_key_pem.write_to_path(folder / "client-key.pem")
    for index, pem in enumerate(client.cert_chain_pems):
        pem.write_to_path(folder / "client-cert.pem", append=index > 0)
    return Certificates(context, folder)


Serve = Callable[..., Running]


@pytest.fixture
def export(tmp_path: Path) -> Iterator[Serve]:
    """``export(device)`` serves the device to programs from outside until the test ends; see ``nbd_door.running``.

    Without a device it is a memory device of 16 MiB with blocks of 512 bytes. Further arguments are the server's.
    """
    with ExitStack() as stack:

        def serve(
            device: BlockDevice | None = None, *, description: str = "", fast_zero: bool = False, **settings: Any
        ) -> Running:
            path = tmp_path / f"nbd{len(list(tmp_path.glob('nbd*.sock')))}.sock"
            device = device or MemoryDevice(16 << 20, 512)
            exports = {"": Export(device, description=description, fast_zero=fast_zero)}
            return stack.enter_context(running(exports, path, **settings))

        yield serve
