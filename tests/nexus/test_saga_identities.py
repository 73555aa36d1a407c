"""Ids that sagas reckon from their own."""

import pytest

from nexus.saga.identities import derived

SAGA, OTHER = "11111111-0000-4000-8000-000000000001", "11111111-0000-4000-8000-000000000002"


def test_id_is_the_same_on_every_run_and_nobody_elses() -> None:
    assert derived(SAGA, "region", "0") == derived(SAGA, "region", "0")
    assert len({derived(SAGA, "region", "0"), derived(SAGA, "region", "1"), derived(OTHER, "region", "0")}) == 3


@pytest.mark.parametrize("names", [(), ("region/0",)])
def test_names_that_could_mean_another_id_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="without a slash"):
        derived(SAGA, *names)
