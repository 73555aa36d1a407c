"""The world, simulated: disks that lose power, runs that a seed repeats bit for bit.

``disk``        files in memory that remember what is durable
``power_cut``   a region under thousands of power cuts, and what must hold after each
``random_upstairs``   one Upstairs over three model Downstairs (``upstairs``) through random histories
``trio_seed``   runs of Trio that repeat
``process_kill``   a real process that writes a region, killed again and again
"""
