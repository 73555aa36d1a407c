"""Looking at running disks, and the little that can be asked of them from outside (upstairs-volume.md §15).

``observation``  everything that a command puts around its disks: start here
``server``       the control API over HTTP: the real one's two paths, and ours
``metrics``      counters and levels as Prometheus text
``notices``      what the control plane is told, and what waits to be told (pure)
``notifier``     the sender of those
"""
