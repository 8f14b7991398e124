"""The folder OUT and what the cache remembers of it: publish, manifest, open, export."""
