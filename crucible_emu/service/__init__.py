"""What all HTTP services of a sled have in common (apis-and-tools.md §0): one way to declare an API and to serve it.

``api`` is what a service declares, ``versions`` the ``api-version`` header, ``answers`` the envelope of refusals,
``application`` turns a declaration into an ASGI application, ``serving`` puts that on a socket, and ``exposure`` says
who may be let near it.
"""

from crucible_emu.service.answers import Refusal
from crucible_emu.service.api import Api, Call, Knock, Operation
from crucible_emu.service.application import application
from crucible_emu.service.exposure import Exposure
from crucible_emu.service.serving import serving
from crucible_emu.service.versions import Versions

__all__ = ["Api", "Call", "Exposure", "Knock", "Operation", "Refusal", "Versions", "application", "serving"]
