"""Words and members that our services answer with, held to the documents where no pydantic model stands for them."""

from __future__ import annotations

import itertools
import json
from typing import Any
from uuid import UUID

from openapi_document import Document, load
from upstairs_rig import Rig

from crucible_emu.geometry import RegionDefinition
from crucible_emu.region.repair_files import FileType
from crucible_emu.supervisor.states import ProcessState
from crucible_emu.upstairs import status
from crucible_emu.upstairs.states import ClientState, Mode, Phase, StopReason

CONTROL, REPAIR, DSC = load("control"), load("repair"), load("dsc")


def words(schema: Any) -> set[str]:
    """All words of enumerations in a schema, references not followed."""
    if isinstance(schema, list):
        return set().union(*map(words, schema))
    if not isinstance(schema, dict):
        return set()
    return set(schema.get("enum", ())) | words(list(schema.values()))


def fits(document: Document, name: str, value: object) -> None:
    wrong = document.schema_violations({"$ref": f"#/components/schemas/{name}"}, json.dumps(value).encode())
    assert not wrong, f"{name}: {value}: {wrong}"


def test_every_state_of_a_downstairs_has_the_words_of_the_control_api() -> None:
    said = []
    for phase, mode, reason in itertools.product(Phase, Mode, [None, *StopReason]):
        said.append(status.client_state(ClientState(phase, mode, reason)))
        fits(CONTROL, "DsState", said[-1])
    stops = [made["value"] for made in said if made["type"] == "stopping"]
    connects = [made["value"] for made in said if made["type"] == "connecting"]
    assert {made["type"] for made in said} == words(CONTROL.schemas["DsState"])
    assert {made["mode"] for made in connects} == words(CONTROL.schemas["ConnectionMode"])
    assert {made["state"]["type"] for made in connects} == words(CONTROL.schemas["NegotiationState"])
    assert {made["type"] for made in stops} == words(CONTROL.schemas["ClientStopReason"])
    values: dict[str, set[str]] = {kind: set() for kind in ("negotiation_failed", "fault")}
    for made in stops:
        values.get(made["type"], set()).add(made.get("value", ""))
    assert values["negotiation_failed"] == words(CONTROL.schemas["ClientNegotiationFailed"])
    # Nobody can ask for a fault: the real program's tests can.
    assert values["fault"] == words(CONTROL.schemas["ClientFaultReason"]) - {"requested_fault"}


def test_the_states_of_an_upstairs_have_the_words_of_the_control_api() -> None:
    assert set(status.UPSTAIRS_STATES.values()) == words(CONTROL.schemas["UpState"])


def test_what_an_upstairs_tells_of_itself_fits_the_control_api() -> None:
    rig = Rig().active()
    for start in range(12):
        rig.write(start % 5)
        rig.read(f"read {start}")
        rig.flush(f"flush {start}")
        rig.answer_all()
    rig.write()
    rig.fault(2)
    for made in (Rig(), Rig().active(), rig):
        fits(CONTROL, "UpstairsStats", status.info(made.core))
        fits(CONTROL, "DownstairsWork", status.work(made.core))
    assert status.work(rig.core)["completed"]


def test_the_states_of_a_process_have_the_words_of_the_dsc_api() -> None:
    assert {state.value for state in ProcessState} == words(DSC.schemas["DownstairsState"])


def test_the_files_of_an_extent_have_the_words_of_the_repair_api() -> None:
    assert {kind.value for kind in FileType} == words(REPAIR.schemas["FileType"])


def test_the_definition_of_a_region_has_the_members_of_the_repair_api() -> None:
    made = RegionDefinition(4096, 100, 15, UUID(int=1), True).as_json()
    fits(REPAIR, "RegionDefinition", made)
    assert made.keys() == REPAIR.schemas["RegionDefinition"]["properties"].keys()
