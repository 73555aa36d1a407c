"""Many Downstairs processes on one machine, started, stopped and watched as the real ``dsc`` does it.

``states``    what may happen to one Downstairs process, as a table
``fleet``     all of them, restart policies and random stops: the core, without clock or processes
``layout``    which region directory, port and uuid each has
``process``   one child process from its start to its end
``driver``    the core's actions carried out, timers
``control``   the HTTP API, with the real one's paths and answers
"""

from crucible_emu.supervisor.fleet import Fleet, Member
from crucible_emu.supervisor.states import ProcessState

__all__ = ["Fleet", "Member", "ProcessState"]
