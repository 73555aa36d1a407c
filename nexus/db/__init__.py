"""The database of Nexus: what it remembers, and the one way to change that.

``database`` runs transactions: ``await database.transact(body)``. ``schema`` has the tables. ``transitions`` is the
update-and-check primitive that nearly every change of state goes through. ``migrations`` brings an older database up to
date. ``sagas`` keeps the sagas and the leases of the processes that run them. ``engines`` knows the two databases
apart, ``errors`` what may be refused.
"""

from nexus.db.database import Body, Database, Statistics
from nexus.db.errors import Conflict, Contention, DatabaseError, NotFound, OutcomeUnknown, SchemaUnknown, Unreachable

__all__ = [
    "Body",
    "Conflict",
    "Contention",
    "Database",
    "DatabaseError",
    "NotFound",
    "OutcomeUnknown",
    "SchemaUnknown",
    "Statistics",
    "Unreachable",
]
