"""Rows of what users see: disks, snapshots, images, instances, and what these are charged.

Every function that takes a connection is a body of a transaction, or part of one
(:meth:`nexus.db.Database.transact`); it may run again from the start, and does the same then.
"""
