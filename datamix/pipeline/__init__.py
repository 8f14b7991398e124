"""The phases of a build, in the order they run. Each makes tasks; each task is one sentence of the house.

survey    which files there are, what is in them, their sha256
prepare   read, shape, clean       -> records, with a content key each
encode    records                  -> tokens and masks (full length), then fitted to max_length
sign      records                  -> keys for dedupe
decide    keys and lengths         -> a fate for every record
arrange   fates and lengths        -> bins and an order (integers)
emit      order and tokens         -> rows in files
"""
