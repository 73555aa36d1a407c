"""Which extents are mended before activation, and from which replica: the rule, and every mix of small numbers."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from crucible_emu.upstairs.reconciliation import ExtentVersions, Mend, collate
from crucible_emu.upstairs.rules import CLIENTS

Triple = tuple[int, int, bool]
"""Generation, flush number, dirtiness of one extent on one replica."""


def versions(extents: list[tuple[Triple, ...]]) -> list[ExtentVersions]:
    """``extents[extent][client]`` as the three replicas report them."""
    return [
        ExtentVersions(
            np.array([extent[client][0] for extent in extents], np.uint64),
            np.array([extent[client][1] for extent in extents], np.uint64),
            np.array([extent[client][2] for extent in extents], np.bool_),
        )
        for client in CLIENTS
    ]


def expected(extent: tuple[Triple, ...]) -> tuple[int, tuple[int, ...]] | None:
    """The rule of the real one, step by step: who has the highest generation, of those the highest flush number, of
    those a dirty one before a clean one, of those the first; the others are mended unless they are equal and clean."""
    if len(set(extent)) == 1 and not extent[0][2]:
        return None
    best = [client for client in CLIENTS if extent[client][0] == max(gen for gen, _, _ in extent)]
    best = [client for client in best if extent[client][1] == max(extent[other][1] for other in best)]
    source = next((client for client in best if extent[client][2]), best[0])
    return source, tuple(
        client for client in CLIENTS if client != source and (extent[source][2] or extent[client] != extent[source])
    )


@pytest.mark.parametrize("numbers", ["generations", "flush numbers"])
def test_mending_follows_the_rule(numbers: str) -> None:
    """Every mix of three generations, or three flush numbers, on three replicas, clean and dirty."""
    extents = [
        tuple((n, 4, d) if numbers == "generations" else (4, n, d) for n, d in zip(mix, dirty))
        for mix in product((1, 2, 3), repeat=3)
        for dirty in product((False, True), repeat=3)
    ]
    found = {mend.extent_id: (mend.source, mend.destinations) for mend in collate(versions(extents)).mends}
    for extent_id, extent in enumerate(extents):
        assert found.get(extent_id) == expected(extent), extent


@pytest.mark.parametrize("order", list(permutations(CLIENTS)))
def test_many_extents_are_mended_each_for_itself(order: tuple[int, ...]) -> None:
    """One differs by its generation, one by its flush number, one is dirty, one is equal; by replica in any order."""
    kinds: list[list[Triple]] = [
        [(3, 1, False), (2, 9, True), (2, 9, False)],
        [(2, 8, False), (2, 7, False), (2, 8, False)],
        [(2, 8, True), (2, 8, False), (2, 8, False)],
        [(2, 8, False), (2, 8, False), (2, 8, False)],
    ]
    extents = [tuple(kind[order.index(client)] for client in CLIENTS) for kind in kinds]
    first, second, third = order
    collation = collate(versions(extents))
    assert collation.mends == (
        Mend(0, first, tuple(sorted((second, third)))),
        Mend(1, min(first, third), (second,)),
        Mend(2, first, tuple(sorted((second, third)))),
    )
    assert (collation.max_gen, collation.max_flush) == (4, 10)
