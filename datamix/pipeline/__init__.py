"""The phases of a build, in the order they run. Each makes tasks; each task is one sentence of the house.

scan          which files there are, what is in them, their sha256
prepare       read, shape, clean       -> records, with a content key each
encode_pass   records                  -> tokens and masks, truncated to max_length; keys for dedupe
select        keys and lengths         -> a fate for every record
pack_sources  fates and lengths        -> rows as pieces of records (integers)
order_rows    rows and quotas          -> the order of the rows (integers)
write_shards  order and tokens         -> rows in files
publish       files                    -> the folder OUT, its manifest last
"""
