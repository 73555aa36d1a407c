"""The demonstration: a real image through a mirror that loses a replica on the way, proved with hashes.

``source``     makes or takes the image
``processes``  Downstairs and NBD clients as processes
``story``      what happens, step by step
"""
