"""Nexus over HTTP, typed: one method for each operation (apis-and-tools.md §5).

``asking``      what the clients have in common: queries, and listings that come in pages
``external``    projects, disks, snapshots, images, instances: what users do
``lockstep``    background tasks, sagas, hardware that is lost: what operators do
``emulator``    this project's own routes: volumes, the check, sleds, silos, tokens
``disk_doors``  where on the rack's hosts an attached disk is
``imports``     a file's bytes into a new disk (pure but for the requests)

What every method raises is in :mod:`crucible_emu.client.service`. Parts are imported by name.
"""
