"""The integrity tester: workloads over a disk, and a log of writes that outlives the tester (upstairs-volume.md §16.1).

``content``     what a block holds after so many writes, for many blocks at once
``write_log``   how often each block was written, and what a read may therefore find
``journal``     the write log in a file, so that a SIGKILL of the tester loses nothing
``layout``, ``workloads``   which requests a workload makes, in which order: generators, pure
``runner``      submits them with a queue depth, and checks every read
``rates``       operations per second, as samples and as statistics
``disk``, ``control``, ``scenarios``   workloads that activate anew, and that stop, start and replace Downstairs
"""

from crucible_emu.exercise.write_log import WriteLog, WrongBlock

__all__ = ["WriteLog", "WrongBlock"]
