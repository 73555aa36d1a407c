"""Clients for everybody: of the services over HTTP, and of disks (docs/clients.md).

``service``         one service over HTTP: requests, refusals, silence
``agent``, ``pantry``, ``host``, ``repair``   what each of them can be asked, typed
``retry``           when a request is made again (pure)
``persistence``     requests until they are answered, under Trio
``regions``         waiting for what an agent does in the background

``aio``             disks for asyncio and notebooks
``sync``            the same for scripts
``nbd``             NBD exports under Trio

``nbd_handshake``, ``nbd_exchange``   the client's side of NBD, without I/O
``copying``         what a copy is made of (pure); ``file_pieces`` its local file
``failures``        what can go wrong with a disk
``tls``             whom to trust

Parts are imported by name, so that a script with a disk does not load the services.
"""
