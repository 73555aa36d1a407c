"""What growth may cost, as data: one table, looked up by series and figure.

A series changes one cause (the disk's size, the number of extents) and looks at several figures; a figure's name ends
in its unit. Two kinds of limit:

* :class:`Growth`: "nothing may grow faster than its cause". The cost of *one* operation has nothing to do with the size
  of the disk that it is made on, so it may not grow at all (exponent 0); opening a disk looks at each of its extents
  once, so its time may grow as they do (exponent 1).
* :class:`Ceiling`: a number that a figure may not exceed: the seconds in which a disk opens, the memory that it takes.

A figure of a busy machine is off by a factor of two without any reason in the program; :data:`NOISE` is that factor,
and a growth is one only beyond it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MIB = 1024 * 1024
GIB = 1024 * MIB
TIB = 1024 * GIB

NOISE = 2.0


@dataclass(frozen=True, slots=True)
class Growth:
    """The figure grows at most as the cause to the power of ``exponent``, ``why``."""

    exponent: float
    why: str


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The figure is at most ``fixed`` and ``share_of_disk`` of the disk's size, both in the figure's unit."""

    fixed: float
    share_of_disk: float = 0.0

    def at(self, disk_size: float) -> float:
        """What holds for a disk of that size, given in the figure's unit."""
        return self.fixed + self.share_of_disk * disk_size


Limit = Growth | Ceiling

PER_OPERATION = Growth(0, "one operation costs the same, whatever there is beside it")
PER_EXTENT = Growth(1, "every extent is looked at once")
PER_DISK = Growth(1, "every disk is opened and kept once")
PER_BYTE = Growth(1, "every byte is kept or written once")

OPENING = Ceiling(2.0)
MEMORY = Ceiling(64.0, 0.001)

LIMITS: Mapping[str, Mapping[str, tuple[Limit, ...]]] = {
    "size": {
        "creation_s": (PER_EXTENT,),
        "opening_s": (PER_EXTENT, OPENING),
        "opening_after_kill_s": (PER_EXTENT,),
        "idle_memory_mib": (PER_BYTE, MEMORY),
        "idle_resident_mib": (PER_BYTE, MEMORY),
        "used_memory_mib": (PER_BYTE, MEMORY),
        "write_cpu_us": (PER_OPERATION,),
        "flush_cpu_us": (PER_OPERATION,),
        "read_cpu_us": (PER_OPERATION,),
        "scattered_write_cpu_us": (PER_OPERATION,),
        "scattered_read_cpu_us": (PER_OPERATION,),
        # A block that has its extent for itself pays for that extent's numbers and bitmap alone.
        "scattered_flush_cpu_us": (PER_EXTENT,),
    },
    "extents": {
        "creation_s": (PER_EXTENT,),
        "opening_s": (PER_EXTENT,),
        "opening_after_kill_s": (PER_EXTENT,),
        "idle_memory_mib": (PER_EXTENT,),
        "write_cpu_us": (PER_OPERATION,),
        "read_cpu_us": (PER_OPERATION,),
        "small_flush_cpu_us": (PER_OPERATION,),
        "scattered_read_cpu_us": (PER_OPERATION,),
        "scattered_flush_cpu_us": (PER_EXTENT,),
    },
    "behind": {
        "opening_s": (Growth(1, "every extent that differs is made equal once"),),
    },
    "disks": {
        "opening_s": (PER_DISK,),
        "idle_memory_mib": (PER_DISK,),
        "idle_cpu_us": (PER_DISK,),
        "write_cpu_us": (PER_OPERATION,),
        "read_cpu_us": (PER_OPERATION,),
        "one_write_cpu_us": (PER_OPERATION,),
    },
    "unflushed": {
        "write_cpu_us": (PER_OPERATION,),
        "flush_cpu_us": (PER_OPERATION,),
        "flush_s": (PER_BYTE,),
        "unflushed_memory_mib": (PER_BYTE, MEMORY),
        "flushed_memory_mib": (PER_BYTE, MEMORY),
    },
    "depth": {
        "write_cpu_us": (PER_OPERATION,),
        "read_cpu_us": (PER_OPERATION,),
    },
}
"""The limits of each figure of each series. A figure that is not here has none."""
