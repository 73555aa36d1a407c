"""The same job given to this disk and to what a user would pick instead, in one run.

``python -m bench run`` (and ``quick``) starts every disk beside the others, fills each through its own door, and gives
all of them the same fio lines round by round. What is compared is the ratio within a round: the machine's mood changes
from second to second and moves all disks of a round together, so ratios are steady where rates are not.

``lines``      what is asked of a disk: the table of fio lines
``subjects``   who is asked: how each server is started, watched and ended, and what it does not do
``fio``        one line run against one server, its result or its failure in a sentence
``flush``      what a line left to do, done before the next one is measured
``measuring``  all subjects served beside each other, verified, and measured in turns
``rounds``     the interleaving, the medians and the ratios (pure)
``floors``     what this disk must reach and aims at, and the judgement (pure)
``machine``    where and with what was measured, without naming a person or a place

Three subjects are programs of the bench: ``mirror_plugin`` and ``asyncio_mirror`` are mirrors as one would write them
by hand, ``three_processes`` is this disk over three Downstairs as one command. ``cipher`` is what encryption alone
allows.

``report``     the table of ``quick`` for a person, and its records for a program
``results``    everything that ``run`` found out, as one document, written and read again
``page``       what stands in its report; ``document`` renders that, ``charts`` draws
``compare``    two results side by side
``questions``  what all commands understand alike

``python -m bench profile`` says where this disk's CPU time goes:

``profiling``  the command, and three runs of a line, the second one sampled
``sampled``    a Python program under a sampler that goes by CPU time; shares a process with what it measures
``layers``     which layer of the disk a stack belongs to: a literal table (pure)
``flame``      the flame graph (pure)

``python -m bench growth`` asks what gets dearer with a disk's size, its extents, its neighbours:

``growth``     the series and their loads; ``growth_report`` and ``growth_command`` show them
``limits``     what growth may cost, as data; ``trends`` judges points by it (pure)
``opening``    a server from its command to the first reply; ``many_disks`` is one with many disks
``pipelined``  an NBD client for exact numbers of requests; ``process_figures`` what they cost the server

``python -m bench services`` has the rates of what happens around a disk (``services``, ``region_rates``,
``saga_rate``).

``python -m bench control-plane`` asks how the control plane grows:

``crowd``          a database with thousands of disks and snapshots in it
``control_plane``  what a disk's creation and deletion cost beside them
``replacement``    what it costs to replace a copy of a snapshot that many disks were made of
``asked``          what a database was asked meanwhile: rows, plans and steps

The bench of disks is a client like any other: it reaches this project through its command and its socket only. That of
the control plane counts what a database looks at, which no client sees, so it calls sagas.
"""
