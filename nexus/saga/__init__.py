"""Sagas: work in steps that ends done or undone, whoever dies meanwhile (nexus.md §0.5).

``recipe`` is how a saga is written down: nodes, each with an action and perhaps an undo. ``dag`` is what becomes of a
recipe: a graph whose nodes have names that the log can speak of. ``events`` are the rows of the log, ``execution`` says
what they mean and what comes next, ``executor`` does it, ``hooks`` is where tests and the explorer reach in between,
``store`` is what the executor asks of a database, ``identities`` are the ids that a saga makes. Who takes over what a
dead Nexus left is ``nexus.tasks``' business.
"""

from nexus.saga.dag import Dag
from nexus.saga.execution import Execution, SagaState
from nexus.saga.executor import Executor, SagaFailed, SagaStuck
from nexus.saga.hooks import Hooks, Point
from nexus.saga.recipe import ActionFailed, Context, Interrupted, Node, Parallel, Saga, SubSaga
from nexus.saga.store import Fenced, MemoryStore, SagaRecord, Store

__all__ = [
    "ActionFailed",
    "Context",
    "Dag",
    "Execution",
    "Executor",
    "Fenced",
    "Hooks",
    "Interrupted",
    "MemoryStore",
    "Node",
    "Parallel",
    "Point",
    "Saga",
    "SagaFailed",
    "SagaRecord",
    "SagaState",
    "SagaStuck",
    "Store",
    "SubSaga",
]
