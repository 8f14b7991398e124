"""The rows of a set by place: mapped Arrow files (no copy), or Parquet files a few decoded row groups at a time.

Both answer the same two questions about rows by their places in the training order. Opening either reads no token:
Arrow costs one small message a thousand rows, Parquet one footer a file, each when it is first needed.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datamix.core.arrays import offsets_from_lengths
from datamix.core.errors import DataError
from datamix.core.kernels import Kernel, address

MODEL_COLUMNS: tuple[str, ...] = ("input_ids", "labels", "attention_mask", "position_ids")
_LENGTHS = Kernel("load", "lists", "lengths")
_FILL = Kernel("load", "lists", "fill")
_LISTS = (pa.list_(pa.int32()), pa.list_(pa.int8()))
_MAX_DECODED_GROUPS = 4  # decoded row groups of Parquet in memory


class RowStore(Protocol):
    """Rows by their place in the training order."""

    @property
    def lengths_at_hand(self) -> bool:
        """Whether the lengths of rows far ahead cost no decoding."""
        ...

    @property
    def columns(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def num_tokens(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of some rows. ``[num_rows]``."""
        ...

    def fill(
        self,
        block: NDArray[np.int64],
        columns: Sequence[str],
        places: NDArray[np.int64],
        begin: NDArray[np.int64],
    ) -> None:
        """Copy the columns of each row to ``block[:, begin[i]:]``; one line of the block is one column."""
        ...

    def table(self, columns: Sequence[str], start: int, stop: int) -> pa.Table:
        """Rows ``start..stop`` as they are."""
        ...


class ArrowStore:
    """Arrow stream files, mapped: a row is a view of the page cache."""

    lengths_at_hand = True

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._batches = [batch for path in self.paths for batch in _mapped_batches(path)]
        self._starts = offsets_from_lengths([len(batch) for batch in self._batches])
        self._lists: dict[tuple[str, ...], _MappedLists] = {}

    def __reduce__(self) -> tuple[type[ArrowStore], tuple[tuple[Path, ...]]]:
        return ArrowStore, (self.paths,)  # another process maps the files itself

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._batches[0].schema.names) if self._batches else ()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def num_tokens(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._columns(("input_ids",)).lengths(places)

    def fill(
        self,
        block: NDArray[np.int64],
        columns: Sequence[str],
        places: NDArray[np.int64],
        begin: NDArray[np.int64],
    ) -> None:
        self._columns(tuple(columns)).fill(block, places, begin)

    def _columns(self, columns: tuple[str, ...]) -> _MappedLists:
        if columns not in self._lists:
            self._lists[columns] = _MappedLists(self._batches, self._starts, columns)
        return self._lists[columns]

    def table(self, columns: Sequence[str], start: int, stop: int) -> pa.Table:
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        parts = [batch.select(list(columns)) for batch in self._batches[first : max(last, first + 1)]]
        return pa.Table.from_batches(parts).slice(start - int(self._starts[first]), stop - start)


class _MappedLists:
    """Some columns of all batches as addresses, so that one compiled call copies the lists of many rows."""

    def __init__(
        self, batches: Sequence[pa.RecordBatch], starts: NDArray[np.int64], columns: tuple[str, ...]
    ) -> None:
        self._batches, self._names, self._starts = batches, columns, starts
        types = [batches[0].schema.field(name).type for name in columns]
        if not all(t in _LISTS for t in types):
            raise DataError(
                f"{', '.join(columns)} should be lists of int32 or int8, and are {types}; {_REBUILD}"
            )
        kinds = [type_.value_type for type_ in types]
        # 4, or 1 of an attention mask
        self._sizes = np.array([kind.bit_width // 8 for kind in kinds], np.int64)
        # offsets, numbers; 0: not yet needed
        self._table = np.zeros((len(batches), len(columns), 2), np.int64)
        about = address(self._table), address(starts), len(batches), address(self._sizes), len(columns)
        self._lengths = _LENGTHS.bound(about, num_rest=3)
        self._fill = _FILL.bound(about, num_rest=5)

    def lengths(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of the first column. ``[num_rows]``."""
        out = np.empty(len(places), np.int64)
        while (missing := self._lengths(len(places), address(places), address(out))) >= 0:
            self._map(missing)
        return out

    def fill(self, block: NDArray[np.int64], places: NDArray[np.int64], begin: NDArray[np.int64]) -> None:
        """See ``RowStore.fill``."""
        call = len(places), address(places), address(begin), address(block), block.shape[1]
        while (missing := self._fill(*call)) >= 0:
            self._map(missing)

    def _map(self, index: int) -> None:
        columns = [self._batches[index].column(name) for name in self._names]
        try:
            for column in columns:
                column.validate(full=True)  # reads the offsets
        except pa.ArrowInvalid as error:
            raise DataError(f"A file of {self._names[0]} is damaged ({error}); {_REBUILD}") from error
        lists = [_flat(column) for column in columns]
        if any(column.null_count for column in columns) or not all(
            np.array_equal(np.diff(lists[0][1]), np.diff(offsets)) for _, offsets in lists
        ):
            raise DataError(f"Rows have columns of unequal lengths ({', '.join(self._names)}); {_REBUILD}")
        for column, (numbers, offsets) in enumerate(lists):
            self._table[index, column] = offsets.ctypes.data, numbers.ctypes.data


def _flat(lists: pa.ListArray) -> tuple[NDArray[Any], NDArray[Any]]:
    """The numbers of all lists and where each begins; not by ``to_numpy``, which loads pandas."""
    return np.from_dlpack(lists.values), np.from_dlpack(lists.offsets)


def _mapped_batches(path: Path) -> list[pa.RecordBatch]:
    try:
        return list(pa.ipc.open_stream(pa.memory_map(str(path))))
    except (FileNotFoundError, pa.ArrowInvalid) as error:
        raise DataError(
            f"{path} is named by the manifest and cannot be read ({error}); {_REBUILD}"
        ) from error


_REBUILD = "build the set again: what is cached is not done twice"


class ParquetStore:
    """Parquet files: row groups are decoded as whole columns, the next one ahead in a thread."""

    lengths_at_hand = False

    def __init__(self, files: Sequence[tuple[Path, int]]) -> None:
        self._files = tuple(files)
        self.paths = tuple(path for path, _ in files)
        self._file_starts = offsets_from_lengths([num_rows for _, num_rows in self._files])
        self._forget()

    def __reduce__(self) -> tuple[type[ParquetStore], tuple[tuple[tuple[Path, int], ...]]]:
        return ParquetStore, (self._files,)

    def _forget(self) -> None:
        """Start with nothing open: a forked child shares neither threads nor file positions with its parent."""
        self._pid = os.getpid()
        self._readers: dict[int, pq.ParquetFile] = {}
        self._group_starts: dict[int, NDArray[np.int64]] = {}
        self._decoded_groups: OrderedDict[tuple[int, int, tuple[str, ...]], Future[_Group]] = OrderedDict()
        self._ahead: ThreadPoolExecutor | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self._reader(0).schema_arrow.names) if self._files else ()

    def __len__(self) -> int:
        return int(self._file_starts[-1])

    def num_tokens(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        out = np.zeros(len(places), np.int64)
        for i, group, row in self._rising(places):
            _, offsets = group.view("input_ids")
            out[i] = offsets[row + 1] - offsets[row]
        return out

    def fill(
        self,
        block: NDArray[np.int64],
        columns: Sequence[str],
        places: NDArray[np.int64],
        begin: NDArray[np.int64],
    ) -> None:
        for i, group, row in self._rising(places):
            for line, column in enumerate(columns):
                numbers, offsets = group.view(column)
                a, b = offsets.item(row), offsets.item(row + 1)
                block[line, begin[i] : begin[i] + b - a] = numbers[a:b]

    def _rising(self, places: NDArray[np.int64]) -> Iterator[tuple[int, _Group, int]]:
        """The decoded group of each row, and its number there; in rising order, so that each group is decoded once."""
        columns = tuple(name for name in MODEL_COLUMNS if name in self.columns)
        for i in np.argsort(places, kind="stable").tolist():
            group, row = self._find(int(places[i]), columns)
            yield i, group, row

    def table(self, columns: Sequence[str], start: int, stop: int) -> pa.Table:
        parts: list[pa.Table] = []
        while start < stop:
            group, i = self._find(start, tuple(columns))
            parts.append(group.table.slice(i, stop - start))
            start += len(parts[-1])
        return pa.concat_tables(parts)

    def _find(self, place: int, columns: tuple[str, ...]) -> tuple[_Group, int]:
        if self._pid != os.getpid():
            self._forget()
        file = int(np.searchsorted(self._file_starts, place, side="right")) - 1
        inside = place - int(self._file_starts[file])
        starts = self._groups(file)
        group = int(np.searchsorted(starts, inside, side="right")) - 1
        return self._decoded(file, group, columns), inside - int(starts[group])

    def _decoded(self, file: int, group: int, columns: tuple[str, ...]) -> _Group:
        key = (file, group, columns)
        if key in self._decoded_groups:
            self._decoded_groups.move_to_end(key)
            return self._decoded_groups[key].result()
        decoded = self._start(key).result()
        following = self._following(file, group)
        if following is not None and (*following, columns) not in self._decoded_groups:
            self._start((*following, columns))
        while len(self._decoded_groups) > _MAX_DECODED_GROUPS:
            self._decoded_groups.popitem(last=False)
        return decoded

    def _following(self, file: int, group: int) -> tuple[int, int] | None:
        if group + 2 < len(self._groups(file)):
            return file, group + 1
        for later in range(file + 1, len(self._files)):
            if self._files[later][1]:
                return later, 0
        return None

    def _start(self, key: tuple[int, int, tuple[str, ...]]) -> Future[_Group]:
        if self._ahead is None:
            self._ahead = ThreadPoolExecutor(1, thread_name_prefix="datamix-decode")
        file, group, columns = key
        reader = self._reader(file)
        self._decoded_groups[key] = self._ahead.submit(
            lambda: _Group(reader.read_row_group(group, columns=list(columns), use_threads=False))
        )
        return self._decoded_groups[key]

    def _groups(self, file: int) -> NDArray[np.int64]:
        if file not in self._group_starts:
            metadata = self._reader(file).metadata
            sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            self._group_starts[file] = offsets_from_lengths(sizes)
        return self._group_starts[file]

    def _reader(self, file: int) -> pq.ParquetFile:
        if file not in self._readers:
            path, num_rows = self._files[file]
            try:
                reader = pq.ParquetFile(path)
            except (FileNotFoundError, pa.ArrowInvalid) as error:
                raise DataError(
                    f"{path} is named by the manifest and cannot be read ({error}); {_REBUILD}"
                ) from error
            if reader.metadata.num_rows != num_rows:
                raise DataError(
                    f"{path}: the manifest says {num_rows} rows, the file holds {reader.metadata.num_rows}; {_REBUILD}"
                )
            self._readers[file] = reader
        return self._readers[file]


class _Group:
    """A decoded row group and views of its lists."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self._views: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}

    def view(self, column: str) -> tuple[NDArray[Any], NDArray[Any]]:
        if column not in self._views:
            lists = self.table.column(column).combine_chunks()
            if isinstance(lists, pa.ChunkedArray):
                lists = lists.chunk(0)
            self._views[column] = _flat(lists)
        return self._views[column]


def open_store(folder: Path, manifest: Mapping[str, Any], split: str) -> RowStore:
    """The rows of one split: from Arrow where the set has it (mapped, no decoding), else from Parquet.

    Raises:
        DataError: the manifest names files of neither.
    """
    outputs = [output for output in manifest["outputs"] if output["split"] == split]
    mapped = [folder / o["path"] for o in outputs if o["format"] == "arrow" and o["path"].endswith(".arrow")]
    if mapped:
        return ArrowStore(mapped)
    parquet = [(folder / o["path"], int(o["rows"])) for o in outputs if o["format"] == "parquet"]
    if not parquet:
        splits = sorted({o["split"] for o in manifest["outputs"] if o["format"] in ("arrow", "parquet")})
        raise DataError(
            f"{folder}: no rows of split {split!r} in Parquet or Arrow (splits that have some: "
            f"{', '.join(splits) or 'none'}); add `parquet` or `arrow` to `write:` and build again, or "
            "`datamix export` it"
        )
    return ParquetStore(parquet)
