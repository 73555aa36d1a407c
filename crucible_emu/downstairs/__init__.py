"""One region behind one address: who may use it, in which order jobs run, and how extents are repaired.

``session``, ``promotion``   negotiation and takeover, as tables (pure)
``admission``, ``answers``   what may be asked, what is answered (pure)
``jobs``, ``in_order``       which job may run (pure)
``lane``, ``work``           what may run beside what (pure)
``statistics``               what was done, as numbers
``core``                     all of that together: :class:`Downstairs`, messages in, actions out (pure)
``runner``, ``flushes``      carry work out on a region
``runs``                     does single blocks of another process at once, without work for each
``server``, ``connection``   the doors: TCP, TLS, unix sockets; one peer
``listening``, ``transport``, ``tls``   what they stand on
``local``                    the door for an Upstairs in the same process
``repair_service``           serves extents to other Downstairs, over ``repair_http``
``repair_client``            fetches an extent from another Downstairs
``faults``                   makes a Downstairs slow, lossy and wrong, for tests
"""
