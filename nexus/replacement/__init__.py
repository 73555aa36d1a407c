"""Replacements: what is known of lost copies and their successors, and how it may change (nexus.md §1.4, §2).

``machine``: a state machine is a table that the code runs. ``region``: read/write regions. ``read_only``: read-only
targets, and ``step``: the volumes that count on one; ``affected`` which volumes those are. ``snapshot_copies`` what
there is of a snapshot, ``clone_source`` which of it is cloned, ``clone_proof`` whether the clone may be used,
``notice`` who has to be told of it. ``notes``: why a request waits, and what was found on the way.

Everything that takes a connection is a body of a transaction, or part of one. Who moves requests on are the sagas
(:mod:`nexus.sagas`) and tasks (:mod:`nexus.tasks`) that are called as the tables say.
"""
