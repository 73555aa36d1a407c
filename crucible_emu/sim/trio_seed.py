"""Makes a run of Trio repeat bit for bit: the only place that touches Trio's insides.

What it is for: Trio shuffles the tasks that are ready together, on purpose. A simulation wants that shuffle to come
from its seed, so that a failing seed fails again. Trio has no public way to ask for it.

Why it is safe: the two attributes are put back afterwards, and a test fails as soon as a new Trio has moved them. What
is left to chance is the order in which several cancelled waits are undone; nothing here acts in that order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trio._core import _run


@contextmanager
def seeded_scheduling(seed: int) -> Iterator[None]:
    """Within, a ``trio.run`` that uses neither threads nor sockets nor the real clock depends on ``seed`` alone."""
    state, allowed = _run._r.getstate(), _run._ALLOW_DETERMINISTIC_SCHEDULING
    _run._r.seed(seed)
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    try:
        yield
    finally:
        _run._r.setstate(state)
        _run._ALLOW_DETERMINISTIC_SCHEDULING = allowed  # type: ignore[misc]


def scheduling_state() -> object:
    """How far the shuffle has come, for :func:`set_scheduling_state`."""
    return _run._r.getstate()


def set_scheduling_state(state: object) -> None:
    """Go on from there, within :func:`seeded_scheduling`."""
    _run._r.setstate(state)  # type: ignore[arg-type]
