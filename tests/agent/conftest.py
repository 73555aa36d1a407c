"""The ways to the neighbours' rigs: scripted Upstairs, interrupted disks, commands."""

import agent_neighbours  # noqa: F401
