"""Nexus, the control plane: which Downstairs make up a disk, and how one is swapped for another.

It knows the data plane through volume construction requests and HTTP only; it never opens a region, and
``crucible_emu`` never imports it. In this version its foundation stands: ``saga`` runs work that ends done or undone,
``db`` keeps what must not be forgotten, ``volumes`` says who uses what and when it may go, ``placement`` finds room.
The services and the command that use them are not there yet.
"""

from crucible_emu import __version__

__all__ = ["__version__"]
