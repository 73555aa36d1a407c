"""A rack on one machine: agents, pantries and hosts as processes under one supervisor, in one directory.

``document``     the rack file: which sleds there are, here and on other machines
``ports``        which Downstairs ports each agent hands out
``state``        what survives: the ports that were given out, the sleds that were killed
``state_file``   the file that it is kept in
``plan``         every service with its command line
``states``       what may happen to one service, as a table
``core``         all services, restarts and their order at the end: without clock or processes
``forkserver``   the process that has everything imported and forks a service for each request
``supervisor``   the core's actions carried out: the Trio shell
``description``  the rack as ``rack status`` shows it
``control``      the unix socket of a running supervisor; ``asking`` is its other end
``reservations`` ports that stay ours while nobody listens on them
``presence``     where the rack is, and who runs it
``launch``       from a command to a supervisor in the background
``reach``        whether services on other machines answer
"""
