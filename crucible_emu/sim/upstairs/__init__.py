"""Random histories of one Upstairs over three model Downstairs, in mock time; ``random_upstairs`` is the command.

``world``        what all parts share: the seed's randomness, the agenda of timed events, the trace, the verdict
``storage``      the blocks of one model Downstairs: what is there, and what a crash would leave
``downstairs``   the process: promotion, stalls, crashes, repair copies
``connection``   one connection at the Downstairs: negotiation, then messages in strict order
``execution``    jobs, in any order that their dependencies allow
``network``      connections that delay, lose and end; the Upstairs' connector
``registers``    what each block may hold, and what every answer must have been
``requests``     guest requests and their judgement
``history``      the steps of one seed
"""
