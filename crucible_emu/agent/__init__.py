"""The Crucible agent: regions on one (pretended) disk, their Downstairs, their snapshots (apis-and-tools.md §1).

``documents``      what requests and answers look like
``states``         what may happen to a region and to a running snapshot, as tables (pure)
``records``        what survives a restart, and its text (pure)
``core``           what each request and each piece of news does to the records, and what is to be done (pure)
``books``          reservations against the capacity (pure)
``failures``       what fails on purpose (pure)
``digest_book``    which digests belong to one moment (pure)
``store``          the data file on disk
``datasets``       region directories and snapshots
``services``       the Downstairs, as tasks or as processes
``digesting``      digests in the background
``agent``          requests in, the worker
``api``            the routes
"""

from crucible_emu.agent.agent import Agent, AgentOptions, running_agent
from crucible_emu.agent.api import agent_api
from crucible_emu.agent.core import PortPool
from crucible_emu.agent.failures import Failing, Failures

__all__ = ["Agent", "AgentOptions", "Failing", "Failures", "PortPool", "agent_api", "running_agent"]
