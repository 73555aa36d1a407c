"""W53 on rows: what the explorer cannot show."""

from __future__ import annotations

import pytest
from volumes_rig import Rack, stash

from nexus.db import Database
from nexus.saga import ActionFailed
from nexus.sagas.region_replacement_finish import Params, require_old_region_left


@pytest.fixture
def rack(in_memory: Database) -> Rack:
    made = Rack(in_memory, checked=False)
    for _ in range(5):
        made.add_sled()
    return made


def test_W53_a_request_does_not_end_while_its_region_is_there(rack: Rack) -> None:
    """It may stay with its stash, under a snapshot. The original looks at none of this."""
    disk = rack.disk()
    old = disk.regions[0]
    about = Params(request_id=rack.id(), volume_id=rack.id(), old_region_id=old, stash_id=disk.volume_id)
    snapshot = rack.snapshot(disk)

    with pytest.raises(ActionFailed, match="is still there"):
        rack.run(require_old_region_left, about)
    rack.delete(disk.volume_id)
    rack.run(require_old_region_left, about)
    elsewhere = about.model_copy(update={"stash_id": stash(rack)})
    with pytest.raises(ActionFailed, match="is still there"):
        rack.run(require_old_region_left, elsewhere)
    rack.finish_delete(snapshot.volume_id, rack.delete(snapshot.volume_id))
    rack.run(require_old_region_left, about)
