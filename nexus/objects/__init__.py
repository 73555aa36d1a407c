"""Rows of what users see: disks, snapshots, images, instances, and what these are charged.

``disks`` makes disks and moves them from state to state, ``sources`` says what a disk may be made of, ``imports`` has
the blocks that are written into one by way of a pantry. ``snapshots`` with their ledger, ``images``, ``instances`` with
the disks that they have, ``provisioning`` what is paid for. ``refusals``: what users are told when something is not
done.

Every function that takes a connection is a body of a transaction, or part of one
(:meth:`nexus.db.Database.transact`); it may run again from the start, and does the same then.
"""
