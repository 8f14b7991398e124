"""Cut a file into slices by constants: the same cuts on every machine, for every number of workers.

A slice is named by the file's sha256 and what it covers, so that its receipt holds wherever the file lies. Only what can
be entered in the middle is cut: lines of an uncompressed file at bytes, Parquet at row groups, Arrow at batches.
"""

from __future__ import annotations

from datamix.contracts import Slice
from datamix.read.blocks import is_wide
from datamix.read.columnar import num_parts
from datamix.read.sniffing import Sniff
from datamix.read.storage import explained

SLICE_BYTES = 32 << 20


def cut(path: str, sha256: str, sniffed: Sniff, slice_bytes: int = SLICE_BYTES) -> list[Slice]:
    """Slices of about ``slice_bytes`` stored bytes that together hold every record once, in order.

    Raises: DataError where a Parquet or Arrow file is damaged.
    """
    ranges: list[tuple[int, int | None]] = [(0, None)]
    if sniffed.compression is None and sniffed.num_bytes > slice_bytes:
        if sniffed.container in ("jsonl", "lines") and not is_wide(sniffed.encoding):
            starts = range(0, sniffed.num_bytes, slice_bytes)
            ranges = [(start, min(start + slice_bytes, sniffed.num_bytes)) for start in starts]
        elif sniffed.container in ("parquet", "arrow"):
            ranges = _part_ranges(path, sniffed, slice_bytes)
    whole = (path, sha256, sniffed.container, sniffed.compression, sniffed.encoding, sniffed.options)
    return [Slice(*whole, start=start, stop=stop) for start, stop in ranges]


def _part_ranges(path: str, sniffed: Sniff, slice_bytes: int) -> list[tuple[int, int | None]]:
    with explained(path):
        count, sizes = num_parts(path, sniffed.container)
    sizes = sizes or [sniffed.num_bytes // max(count, 1)] * count
    ranges: list[tuple[int, int | None]] = []
    start, filled = 0, 0
    for part, size in enumerate(sizes):
        filled += size
        if filled >= slice_bytes or part == count - 1:
            ranges.append((start, part + 1))
            start, filled = part + 1, 0
    return ranges or [(0, None)]
