"""A host of virtual machines without the machines: what a control plane wants of one is disks (apis-and-tools.md §6).

``components``   an instance spec, as the Propolis document has it
``documents``    what else travels over the API
``states``       what may happen to an instance: a table
``instance``     one instance, as far as it is decided (pure)
``spec``         which disks a spec asks for; migration, replacement (pure)
``refusals``     why something is not done, and with which status
``disk``         a volume and the NBD door in front of it
``source``       asks the source of a migration for its spec
``machine``      drives one instance
``directory``    sockets, and the note of what runs
``host``         all instances
``operations``   the API
"""

from crucible_emu.host.host import Host, hosting
from crucible_emu.host.machine import Settings
from crucible_emu.host.operations import api

__all__ = ["Host", "Settings", "api", "hosting"]
