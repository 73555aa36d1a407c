"""One region behind one address: who may use it, in which order jobs run, and how extents are repaired.

``session``, ``promotion``   negotiation and takeover, as tables (pure)
``admission``, ``answers``   what may be asked, what is answered (pure)
``jobs``, ``in_order``       which job may run (pure)
``lane``, ``work``           what may run beside what (pure)
``core``                     all of that together: :class:`Downstairs`, messages in, actions out (pure)
``runner``                   carries work out on a region
``server``, ``tls``          the doors: TCP, TLS, unix sockets
``local``                    the door for an Upstairs in the same process
``repair_service``           serves extents to other Downstairs
``repair_client``            fetches an extent from another Downstairs
``faults``                   makes a Downstairs slow, lossy and wrong, for tests
"""
