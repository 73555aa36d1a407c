"""One Nexus as a thing that runs: :func:`running_nexus` with :class:`Settings`, and what it gives, :class:`Nexus`."""

from nexus.running.nexus import Nexus, nexus_over, running_nexus
from nexus.running.settings import Conduct, Settings

__all__ = ["Conduct", "Nexus", "Settings", "nexus_over", "running_nexus"]
