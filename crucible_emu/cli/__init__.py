"""The commands of ``crucible-emu``.

``main``        the root: finds a group, says in one sentence what went wrong
``region``      make, fill, look at and check region directories
``downstairs``, ``serve``, ``attach``, ``demo``   run things
``sizes``, ``progress``, ``new_paths``   sizes as people write them, the progress bar, things that appear when whole
"""
