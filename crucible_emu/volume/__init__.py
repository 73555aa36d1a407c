"""Volumes: what a disk is made of, and how it is put together.

Documents: ``vcr`` the volume construction request, ``comparison`` may one take the place of another, ``info`` what a
disk says about itself. Blocks: ``layout`` and ``layered`` sub-volumes end to end over a parent. Parts: ``backend`` what
a volume is made of, ``region_set``, ``local_file``, ``url``, and ``volume`` itself, with ``scrub``. Putting together:
``construction`` a tree from a request, ``attach`` in service while a block runs, ``local_disk`` a directory with three
regions in one process. On top: ``image`` raw images in and out, ``pseudo_file`` any byte range.
"""
