"""The pantry: volumes held in service for a control plane, with bulk operations on them (apis-and-tools.md §2).

``states``     what may happen to a volume and a job, as tables
``refusals``   which HTTP status says what went wrong, as tables
``ledger``     volumes, jobs and who may do what: the core
``chunks``     pieces, limits and digests (pure)
``documents``  the documents of the API
``work``       what jobs do; ``fetching`` what an import reads
``driver``     the tasks of volumes and jobs: :class:`Pantry`
``operations`` the API over HTTP
"""
