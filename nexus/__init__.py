"""Nexus, the control plane: which Downstairs make up a disk, and how one is swapped for another.

It will know the data plane through volume construction requests and HTTP only; it never opens a region, and
``crucible_emu`` never imports it. In this version the distribution holds the data plane; here stand the package's name
and its command.
"""

from crucible_emu import __version__

__all__ = ["__version__"]
