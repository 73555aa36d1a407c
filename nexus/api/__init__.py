"""The HTTP APIs of Nexus (apis-and-tools.md §5): what users, sled agents and operators say to it.

:func:`external_api` is for users, :func:`internal_api` for Upstairs and sled agents, :func:`lockstep_api` for
operators, with this project's own routes beside it. :class:`Doors` makes out who asks, ``access`` what he may touch,
``queries`` reads paths and queries, ``refusals`` says what failures look like.

Handlers: ``projects``, ``disks``, ``imports``, ``snapshots``, ``images``, ``instances``, ``hardware``; ``internal``;
``lockstep``, ``emulator``. ``views``, ``saga_views`` and ``volume_tree`` make documents of rows. Documents: ``members``
what they are made of, ``external_documents`` and ``instance_documents``, ``internal_documents``,
``lockstep_documents`` those of the real APIs, ``emulator_documents`` of what only this project has.

This module exports nothing: who only wants the documents (a client) does not load the servers.
"""
