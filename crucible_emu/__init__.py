"""Crucible, emulated with real block I/O: regions on disk, three mirrors, one disk that clients attach to.

The packages, from the ground up (imports go down only; see ``docs/architecture.md``):

``errors``, ``geometry``, ``integrity``, ``blockio``   the ground everybody stands on
``region``       extents on disk, byte-compatible with the real ones
``wire``         messages to bytes and back (pure)
``downstairs``   sessions, job order, the TCP server and the extent repair service
``upstairs``     one region set: three mirrors behind one disk
``volume``       volume construction requests
``nbd``          the door for real clients
``cli``          the commands
"""

__version__ = "0.1.0"
