"""The services of a rack as Nexus asks them: agents, pantries and hosts (nexus.md §8).

``refusals`` what a saga may hear from them, ``connections`` one client for each address, ``gone`` who is known to be
gone for good, ``agents``, ``pantries`` and ``hosts`` what each is asked, ``world`` all that an action is given.
"""

from nexus.services.agents import Agents, WantedRegion
from nexus.services.connections import Connections
from nexus.services.hosts import Hosts
from nexus.services.pantries import Pantries, PantryAddress
from nexus.services.refusals import Gone, ServiceRefused
from nexus.services.world import World

__all__ = [
    "Agents",
    "Connections",
    "Gone",
    "Hosts",
    "Pantries",
    "PantryAddress",
    "ServiceRefused",
    "WantedRegion",
    "World",
]
