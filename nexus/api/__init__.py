"""The HTTP APIs of Nexus (apis-and-tools.md §5): what users, sled agents and operators say to it.

Documents: ``members`` what they are made of, ``external_documents``, ``internal_documents``, ``lockstep_documents`` of
the three real APIs, ``emulator_documents`` of what only this project has.
"""
