"""The explorer: anything between any two steps of a saga, and then everything is looked at (nexus.md W1, §9.9).

A rack in memory: ``storage`` bytes, ``fabric`` who listens where, ``agents``, ``upstairs``, ``services`` pantry and
hosts, ``rack`` all of it with a database, ``processes`` Nexus that run and die. What happens: ``users``, ``operations``
between the nodes, ``scenarios`` in which sagas run, ``cases`` how a run is written down. Running: ``run`` one case,
``verdicts`` what must hold, ``plan`` which cases there are, ``campaign`` many of them, ``standing`` and
``state`` what need not be run twice, ``results`` and ``matrix`` what came of it.
``without`` and ``safeguards``: what breaks when a safeguard is taken out, and ``table`` that as a document.

Nothing in production code knows of this package.
"""
