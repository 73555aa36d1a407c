"""Volumes: the documents that say which regions make up a disk, and who counts on what in them (nexus.md §5, §6)."""
