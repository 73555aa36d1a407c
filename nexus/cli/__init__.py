"""The command ``nexus``: a Nexus, a rack with one, and everything that one can be asked (docs/nexus.md).

``main`` finds the group that was asked for; ``access`` knows where the Nexus is and who we are, ``session`` speaks with
it, ``showing`` prints. Each other module is a group of that name, or what one is made of: ``disk_data`` and
``disk_doors`` of ``disk``, ``rack_files`` and ``rack_setup`` of ``rack``, ``volume_tree`` of ``volume``.
"""
