"""Volumes: what a disk is made of, and how it is put together.

``vcr``         the volume construction request: models of the real JSON, loading and writing
``local_disk``  a directory with three regions, opened in one process
``attach``      a disk from a VCR: three Downstairs reached over the network
"""
