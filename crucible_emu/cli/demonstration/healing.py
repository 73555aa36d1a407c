"""How the disk of the demonstration becomes whole again: a replica that returns, and one that is replaced."""

from __future__ import annotations

from collections.abc import Callable

import trio

from crucible_emu.cli.demonstration.regions import Tell
from crucible_emu.errors import IoError
from crucible_emu.upstairs.states import Phase
from crucible_emu.volume.region_set import RegionSet
from crucible_emu.volume.volume import Volume

HEALED_WITHIN_S = 60.0
LOOK_S = 0.02


class Healing:
    """Watches the region set of ``volume`` and says what happens."""

    def __init__(self, volume: Volume, tell: Tell) -> None:
        (part,) = volume.sub_volumes
        assert isinstance(part, RegionSet)
        self._volume = volume
        self._core = part.upstairs.core
        self._tell = tell

    async def returned(self, index: int) -> None:
        """Wait until replica ``index``, which was killed, is as good as the others."""
        client = self._core.clients[index]
        before = client.live_repair_completed
        await self._until(lambda: client.state.phase is Phase.ACTIVE, f"replica {index} is back")
        if client.live_repair_completed > before:
            self._tell(f"Downstairs {index} returns: it missed too much, so {self._extents(index)}")
        else:
            self._tell(f"Downstairs {index} returns and is sent again what it missed")

    async def replaced(self, index: int, old: str, new: str) -> None:
        """Replace ``old`` by ``new`` and wait until all three are in service."""
        client = self._core.clients[index]
        self._volume.replace_downstairs(old, new)
        await self._until(lambda: client.state.phase is Phase.ACTIVE, f"replica {index} is replaced")
        self._tell(f"Downstairs {index} is replaced for good by an empty region: {self._extents(index)}")

    def _extents(self, index: int) -> str:
        client = self._core.clients[index]
        fetched, equal = client.extents_repaired, client.extents_confirmed
        return f"{fetched} extents were fetched from a healthy replica, {equal} were equal already"

    async def _until(self, condition: Callable[[], bool], what: str) -> None:
        with trio.move_on_after(HEALED_WITHIN_S):
            while not condition():  # noqa: ASYNC110  the disk tells its log, and this is for people
                await trio.sleep(LOOK_S)
            return
        states = ", ".join(str(client.state) for client in self._core.clients)
        raise IoError(f"{what}: not within {HEALED_WITHIN_S:.0f} s; the replicas are {states}")
