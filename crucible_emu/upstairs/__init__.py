"""The Upstairs: one disk in front of three Downstairs.

Pure, in reading order: ``states`` (two transition tables), ``rules`` (when a job is answered), ``jobs``,
``dependencies``, ``reconciliation``, ``actions``, ``negotiation`` (one function a message), ``core`` (the machine).
Around it: ``driver`` (connections, timers), ``links`` (the seam), ``tcp_link`` and ``local_link`` (the two ways to a
Downstairs), ``guest`` (the block device that doors serve), ``single_writes``, ``single_reads`` and ``read_train`` (its
short ways for single blocks), ``trains``, ``row_memory``, ``healing`` (bad blocks get their bytes back), ``zeroing``
(large ranges are zeroed piece by piece), ``sealer`` (encryption).
"""
