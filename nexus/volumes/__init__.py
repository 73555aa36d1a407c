"""Volumes: the documents that say which regions make up a disk, and who counts on what in them (nexus.md §5, §6).

Documents: ``recorded`` the VCR as the database holds it, ``walks`` what it names and what becomes of it. Rows:
``resolution`` from an address to a resource and its users, ``rows`` making and finding volumes, ``checkout`` handing
one out, ``deletion`` its end, ``freed`` what that set free, ``replacing`` one target for another, ``parents`` taking a
parent away, ``repair_lock`` who may change a volume, ``search`` who names an address. Proof: ``census`` reads all of
it, ``invariants`` says what must hold. ``refusals``: why something is not done.

Everything that takes a connection is a body of a transaction, or part of one (:meth:`nexus.db.Database.transact`).
"""
