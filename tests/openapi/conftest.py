"""The ways to the neighbours' rigs: Downstairs, scripted replicas, disks over loopback, agents, hosts."""

import openapi_neighbours  # noqa: F401
