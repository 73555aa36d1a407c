"""The door for real clients: any block device, served over NBD to unmodified clients.

``protocol``       the numbers of the protocol
``uri``            NBD addresses
``handshake``      agreeing on an export (pure, a table)
``transmission``   bytes to batches of requests (pure)
``replies``        completed requests to bytes (pure)
``at_once``        requests of single blocks that can be done now: from bytes to bytes (pure)
``eagerness``      when to try a way that may be in vain (pure)
``alignment``      any byte range on a device of blocks
``buffers``        page-aligned memory, used again
``transport``      a raw socket, or TLS
``connection``     one client: the driver
``listeners``      where clients knock
``server``         the exports and everything together
"""

from crucible_emu.nbd.connection import Limits
from crucible_emu.nbd.listeners import Listener, inherited_listeners, listen_on_tcp, listen_on_unix
from crucible_emu.nbd.server import Export, Server
from crucible_emu.nbd.statistics import Statistics
from crucible_emu.nbd.uri import NbdUri
from crucible_emu.nbd.uri import parse as parse_uri

__all__ = [
    "Export",
    "Limits",
    "Listener",
    "NbdUri",
    "Server",
    "Statistics",
    "inherited_listeners",
    "listen_on_tcp",
    "listen_on_unix",
    "parse_uri",
]
