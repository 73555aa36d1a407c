"""Nexus, the control plane: which Downstairs make up a disk, and how one is swapped for another.

It knows the data plane through volume construction requests and HTTP only; it never opens a region, and
``crucible_emu`` never imports it. ``saga`` runs work that ends done or undone, ``db`` keeps what must not be forgotten,
``volumes`` says who uses what and when it may go, ``placement`` finds room; ``objects``, ``sagas`` and ``tasks`` are
what users and time want of them. ``running`` is one Nexus, ``api`` answers for it, ``client`` and ``cli`` ask it.
"""

from crucible_emu import __version__

__all__ = ["__version__"]
