"""The demonstration: a sled dies under five disks and two guests, half of it is deleted meanwhile, and nothing is lost.

``verdict``   what is proved, and how that is computed (pure)
``image``     a real file system to begin with
``guests``    NBD clients that write all the while, and know what they wrote
``proving``   what Nexus and its agents say of each survivor, as evidence
``stage``     the rack and its Nexus, from nothing to nothing
``story``     what happens, step by step
``telling``   the live picture, or plain lines
"""
