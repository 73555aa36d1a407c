"""The data file: its text, what is tolerated in it, what is not, and that no instant of a save loses anything."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from agent_rig import A, B, wish

from crucible_emu.agent.documents import CreateRegion, Region, RunningSnapshot, State
from crucible_emu.agent.records import Records, RegionRecord, dumps, loads
from crucible_emu.agent.states import RegionState
from crucible_emu.agent.store import Store
from crucible_emu.errors import UsageError


def some_records() -> Records:
    papers = {"cert_pem": "c", "key_pem": "very secret", "root_pem": "r"}
    records = Records()
    for number, (region_id, changes, state) in enumerate(
        [(B, {"source": "[::1]:23000"}, RegionState.CREATING), (A, papers, RegionState.CREATED)]
    ):
        parameters = CreateRegion.model_validate(wish(region_id, **changes))
        records = records.with_region(RegionRecord(parameters, 19000 + number, state, "source" in changes))
    return records.with_run(RunningSnapshot(id=A, name="s", port_number=19005, state=State.TOMBSTONED))


TEXT = f"""\
{{
  "regions": {{
    "{A}": {{
      "id": "{A}",
      "state": "created",
      "block_size": 512,
      "extent_size": 8,
      "extent_count": 4,
      "encrypted": false,
      "port_number": 19001,
      "cert_pem": "c",
      "key_pem": "very secret",
      "root_pem": "r",
      "source": null,
      "read_only": false
    }},
    "{B}": {{
      "id": "{B}",
      "state": "requested",
      "block_size": 512,
      "extent_size": 8,
      "extent_count": 4,
      "encrypted": false,
      "port_number": 19000,
      "cert_pem": null,
      "key_pem": null,
      "root_pem": null,
      "source": "[::1]:23000",
      "read_only": true
    }}
  }},
  "running_snapshots": {{
    "{A}": {{
      "s": {{
        "id": "{A}",
        "name": "s",
        "port_number": 19005,
        "state": "tombstoned"
      }}
    }}
  }}
}}
"""


def test_text_of_the_data_file() -> None:
    assert dumps(some_records()) == TEXT
    assert dumps(Records()) == '{\n  "regions": {},\n  "running_snapshots": {}\n}\n'


def test_records_come_back_and_a_clone_begins_again() -> None:
    found = loads(TEXT, "crucible.json")
    assert found.regions[B].state is RegionState.REQUESTED, "it was being cloned"
    assert found.regions[A] == some_records().regions[A]
    assert found.running == some_records().running
    assert dumps(found) == TEXT


def test_unknown_members_are_tolerated_and_missing_ones_have_a_default() -> None:
    file = json.loads(TEXT)
    file["colour"] = "blue"
    for region in file["regions"].values():
        region["shape"] = {"round": True}
        for name in ("read_only", "source"):
            del region[name]
    del file["running_snapshots"]
    found = loads(json.dumps(file), "crucible.json")
    assert [(each.read_only, each.wish.source) for each in found.in_order()] == [(False, None)] * 2
    assert found.running == {}


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("regions", A, "state"), "creating", "regions"),
        (("regions", A, "port_number"), 70_000, "regions"),
        (("regions", A, "key_pem"), ["very secret"], "regions"),
        (("regions", A, "id"), B, "has another id"),
        (("regions", A, "port_number"), 19000, "both have port 19000"),
        (("regions", A, "port_number"), 19005, "both have port 19005"),
        (("running_snapshots", A, "s", "name"), "t", "has another name"),
    ],
)
def test_a_file_that_cannot_be_is_refused_without_quoting_it(place, value, said) -> None:
    file = json.loads(TEXT)
    inner = file
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    with pytest.raises(UsageError, match=f"crucible.json is no data file of an agent: .*{said}") as refused:
        loads(json.dumps(file), "crucible.json")
    assert "secret" not in str(refused.value)


def test_what_is_not_json_is_refused() -> None:
    with pytest.raises(UsageError, match="is no data file of an agent: the file: Invalid JSON"):
        loads("{", "crucible.json")


def test_no_repr_shows_a_key() -> None:
    records = some_records()
    assert "secret" not in repr(records) + repr(records.regions[A].document())
    assert Region.model_validate_json(records.regions[A].document().model_dump_json()).key_pem == "very secret"


# On disk


def test_one_agent_has_a_directory(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "d")
    with pytest.raises(UsageError, match=r"another agent has .*d: stop that one"):
        Store(tmp_path / "new" / "d")
    store.close()
    Store(tmp_path / "new" / "d").close()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is no directory"):
        Store(tmp_path / "file")


def test_save_and_load(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.load() == Records()
    store.save(some_records())
    assert (tmp_path / "crucible.json").read_text() == TEXT
    assert store.load().regions.keys() == {A, B}
    store.close()


class Killed(BaseException):
    """The process is gone."""


@pytest.mark.parametrize("kill_at", range(5))
def test_killed_anywhere_in_a_save_the_file_is_the_old_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    """Steps: create, write, sync, rename, sync of the directory."""
    store = Store(tmp_path)
    store.save(Records())
    steps: list[str] = []

    def interrupted(name: str):
        real = getattr(os, name)

        def step(*arguments, **settings):
            if name != "open" or arguments[1] & os.O_CREAT:
                if len(steps) == kill_at:
                    raise Killed
                steps.append(name)
            return real(*arguments, **settings)

        return step

    with monkeypatch.context() as patched:
        for name in ("open", "pwrite", "fsync", "rename"):
            patched.setattr(os, name, interrupted(name))
        with pytest.raises(Killed):
            store.save(some_records())
    assert steps == ["open", "pwrite", "fsync", "rename"][:kill_at]
    store.close()
    again = Store(tmp_path)
    assert dumps(again.load()) == (TEXT if kill_at > 3 else dumps(Records()))
    assert os.listdir(tmp_path) == ["crucible.json"], "what was left is swept up"
    again.close()
