"""``crucible-emu rack`` with services that only say that they are there: ``python stand_in.py up DIR --sleds 2``.

A service is made with ``crucible_emu.service`` and speaks the ready line, so everything of the rack is real: processes,
ports, pipes, signals. An agent's directory may hold a file ``behaviour`` with one word:

``crash``    it ends with 1 before it is ready
``wrong``    it ends as a command does that was given wrong input
``deaf``     once ready it hears neither SIGTERM nor the end of its input
``parent``   it starts a process of its own, in a session of its own, which hears nothing either
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from crucible_emu.cli import main, rack
from crucible_emu.errors import UsageError

if TYPE_CHECKING:
    from crucible_emu.service import Api, Exposure

CHILD = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


async def _hello(_call: object) -> object:
    return {"arguments": sys.argv[1:]}


def stand_in(arguments: list[str]) -> None:
    """What a service of the rack runs here, in the place of the real command."""
    try:
        _serve(arguments)
    except UsageError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


def _serve(arguments: list[str]) -> None:
    kind, _, *rest = arguments
    directory = None if kind == "pantry" else Path(rest[0])
    word = (
        ""
        if directory is None or not (directory / "behaviour").exists()
        else (directory / "behaviour").read_text().strip()
    )
    if word == "crash":
        sys.exit(1)
    if word == "wrong":
        raise UsageError("the stand-in was told to find its input wrong")
    if word == "parent":
        assert directory is not None
        child = subprocess.Popen([sys.executable, "-c", CHILD], start_new_session=True, stdin=subprocess.DEVNULL)
        (directory / "child").write_text(str(child.pid))
    import trio

    from crucible_emu.service import Api, Exposure, Operation

    exposure = Exposure(rest[rest.index("--listen") + 1])
    trio.run(_until_told, Api(kind, [Operation("hello", "GET", "/hello", _hello)], 1024), exposure, word == "deaf")


async def _until_told(api: Api, exposure: Exposure, deaf: bool) -> None:
    import trio

    from crucible_emu.cli import service
    from crucible_emu.service import serving

    async with serving(api, exposure) as url:
        if deaf:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print(json.dumps({"ready": True, "url": url}), flush=True)
            await trio.sleep_forever()
        async with service.until_told(until_eof=True) as told:
            service.announce(api.name, url, as_json=True)
            await told.wait()


rack.SERVICES = ("crucible_emu.cli.service", "crucible_emu.service")
rack.run_service = stand_in

if __name__ == "__main__":
    main.main(["rack", *sys.argv[1:]])
