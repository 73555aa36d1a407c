"""Nexus beside its three documents: what is routed, the models, and a success of every operation."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import openapi_neighbours  # noqa: F401  opens the ways to the neighbours
import pytest
from api_rig import served
from db_rig import open_database
from nexus_doings import do_everything
from openapi_document import load
from openapi_models import model_differences

from crucible_emu.service import Api
from nexus.api import external_documents, instance_documents, internal_documents, lockstep_documents
from nexus.api.callers import Doors
from nexus.api.emulator_documents import BASE
from nexus.api.external import external_api
from nexus.api.internal import internal_api
from nexus.api.lockstep import lockstep_api

NOBODY = cast(Any, SimpleNamespace(world=None))
DOORS = Doors(cast(Any, None))
APIS: dict[str, Api] = {
    "nexus-external": external_api(NOBODY, DOORS),
    "nexus-internal": internal_api(NOBODY, DOORS),
    "nexus-lockstep": lockstep_api(NOBODY, DOORS),
}
MODELS: dict[str, tuple[ModuleType, ...]] = {
    "nexus-external": (external_documents, instance_documents),
    "nexus-internal": (internal_documents,),
    "nexus-lockstep": (lockstep_documents,),
}
OFFERED = {
    "nexus-external": 38,
    "nexus-internal": 10,
    "nexus-lockstep": 8,
}
"""How many operations of each document there are here; the rest is not about storage."""


def offered(service: str) -> set[str]:
    """The operations of the document that the service has."""
    return {each.operation_id for each in APIS[service].operations if not each.path.startswith(BASE)}


@pytest.mark.parametrize("service", APIS)
def test_what_is_routed_is_what_the_document_has(service: str) -> None:
    document = load(service)
    for operation in APIS[service].operations:
        if operation.path.startswith(BASE):
            continue
        meant = document.operations[operation.operation_id]
        assert (operation.method, operation.path) == meant.route
        assert {operation.success} == meant.success, operation.operation_id
        assert (operation.body is None) == (meant.body is None), operation.operation_id
    assert len(offered(service)) == OFFERED[service]


def test_a_faithful_lockstep_api_has_nothing_of_ours() -> None:
    faithful = lockstep_api(NOBODY, DOORS, faithful=True)
    assert {each.operation_id for each in faithful.operations} == offered("nexus-lockstep")


@pytest.mark.parametrize("service", APIS)
def test_members_words_and_what_is_required_are_those_of_the_document(service: str) -> None:
    assert model_differences(MODELS[service], load(service), sorted(offered(service))) == []


async def test_every_operation_of_nexus_succeeds(tmp_path: Path) -> None:
    """Each exchange is held to the document as it happens."""
    with open_database("sqlite://", inline=True) as database:
        async with served(tmp_path, database) as it:
            await do_everything(it)
            for service in APIS:
                done = {name for name, status in it.seen[service].seen if status < 300}
                # The one operation that never succeeds, by its contract.
                assert offered(service) - done <= {"cpapi_disks_put"}
