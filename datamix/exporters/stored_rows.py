"""The rows of a built set, in training order, for formats that are written later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datamix.core.errors import DataError


def read_rows(
    folder_of_set: Path,
    manifest: dict[str, Any],
    split: str = "train",
    start: int = 0,
    stop: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """Rows ``start..stop`` of one split of a built set, in order, a row group at a time.

    Raises:
        DataError: the set holds no Parquet of this split, or a file it names is gone.
    """
    place = 0
    for path, num_rows in _files(folder_of_set, manifest, split):
        if stop is not None and place >= stop:
            return
        if place + num_rows > start:
            yield from _read_file(path, start - place, None if stop is None else stop - place)
        place += num_rows


def _read_file(path: Path, start: int, stop: int | None) -> Iterator[pa.RecordBatch]:
    try:
        reader = pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is named by the manifest and is gone; build the set again (what is cached is not done twice)"
        ) from error
    with reader:
        place = 0
        for group in range(reader.num_row_groups):
            size = reader.metadata.row_group(group).num_rows
            low, high = max(start - place, 0), size if stop is None else min(stop - place, size)
            if low < high:
                table = reader.read_row_group(group, use_threads=False).combine_chunks()
                yield from table.slice(low, high - low).to_batches()
            place += size


def _files(folder: Path, manifest: dict[str, Any], split: str) -> list[tuple[Path, int]]:
    files = [
        (folder / output["path"], int(output["rows"]))
        for output in manifest["outputs"]
        if output["format"] == "parquet" and output["split"] == split
    ]
    if not files:
        raise DataError(
            f"{folder}: the set holds no Parquet rows of split {split!r} to export from; "
            "build it with `parquet` among `write:`"
        )
    return files
