"""A built set, opened: rows by number, batches, and views for ``torch`` and ``datasets``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from numpy.typing import NDArray

from datamix.core.arrays import row_dicts
from datamix.core.errors import DataError, RecipeError
from datamix.core.set_files import check_listed
from datamix.load.batches import Collation, Deal, collate, in_order, numpy_block
from datamix.load.stores import MODEL_COLUMNS, ArrowStore, ParquetStore, RowStore, open_store

if TYPE_CHECKING:
    from datamix.load.loader import TorchLoader

_READ_ROWS = 256
Row = dict[str, Any]


def open_set(path: str | Path, split: str = "train") -> TrainingSet:
    """Open the set that a build left at ``path``.

    Raises:
        DataError: nothing is there, or a build that did not finish.
    """
    folder = Path(path)
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        if folder.is_dir():
            raise DataError(
                f"{folder} holds no manifest.json: no build has finished there. Run the same `datamix build` again; "
                "it continues where it stopped"
            ) from error
        raise DataError(f"{folder} is not there; give the folder that `datamix build` wrote") from error
    except ValueError as error:
        raise DataError(f"{folder}/manifest.json is not JSON ({error}). Build the set again.") from error
    if not isinstance(manifest, dict):
        raise DataError(f"{folder}/manifest.json was not written by datamix. Build the set again.")
    check_listed(folder, manifest)
    return TrainingSet(open_store(folder, manifest, split), manifest, folder, split)


class TrainingSet:
    """Rows in training order: ``ts[0]``, ``ts[10:20]``, ``for row in ts``. Never shuffle it: the order is the mixture."""

    def __init__(
        self, rows: RowStore, manifest: Mapping[str, Any], folder: Path, split: str = "train"
    ) -> None:
        self.rows = rows
        self.manifest = manifest
        self.folder = folder
        self.split = split

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"TrainingSet({self.manifest['name']!r}, {self.split}, {len(self)} rows of {self.manifest['kind']})"

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...

    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        """Rows as dicts: lists of numbers as numpy arrays, everything else as Python values.

        Raises:
            IndexError: there is no such row.
        """
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            if step == 1:
                return list(self._read(start, max(start, stop)))
            return [self[i] for i in range(start, stop, step)]
        return next(self._read(self._place(place), self._place(place) + 1))

    def __iter__(self) -> Iterator[Row]:
        return self._read(0, len(self))

    def source_of(self, place: int) -> str:
        """The source of a row.

        Raises:
            IndexError: there is no such row.
        """
        at = self._place(place)
        source: str = self.rows.table(["source"], at, at + 1).column("source")[0].as_py()
        return source

    def batches(
        self, batch_size: int, *, start: int = 0, pad_to_multiple_of: int = 1, packed: bool = False
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Numpy batches in order, from row ``start`` on; the last may be smaller. See ``collate`` for their arrays."""
        how, columns = self.collation(pad_to_multiple_of, packed), self.model_columns()
        for places in in_order(start, len(self), batch_size):
            yield from collate(self.rows, columns, places, how, numpy_block)

    def torch(
        self,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int | None = None,
        pad_to_multiple_of: int = 1,
        packed: bool = False,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> TorchLoader:
        """Batches of torch tensors for one rank, resumable at any world size (extra ``torch``).

        Each global batch is ``batch_size * world_size`` consecutive rows, dealt to the ranks by a permutation seeded with
        ``seed`` (the recipe's by default). ``packed`` joins a batch into one row of documents.

        Raises:
            DataError: the set has no ``input_ids``.
            ValueError: rank, world size or batch size make no sense.
        """
        try:
            from datamix.load.loader import RowStream, TorchLoader
        except ModuleNotFoundError as error:
            raise RecipeError(
                f"torch(): {error.name} is not installed. Install the extra: pip install 'datamix-toolkit[torch]'."
            ) from error
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(
                f"batch_size={batch_size}, rank={rank}, world_size={world_size}: need batch_size >= 1 and 0 <= rank < world_size"
            )
        deal = Deal(len(self), batch_size, world_size, self.manifest["seed"] if seed is None else seed)
        how = self.collation(pad_to_multiple_of, packed)
        identity = {name: self.manifest.get(name) for name in ("content_sha256", "key")}
        stream = RowStream(self.rows, self.model_columns(), how, deal, rank, identity)
        return TorchLoader(stream, num_workers, pin_memory, self.manifest.get("changes", ()))

    def datasets(self) -> Any:
        """The rows for ``datasets``: a mapped ``Dataset`` of Arrow files, else an ``IterableDataset`` of Parquet."""
        import datasets

        if isinstance(self.rows, ArrowStore):
            parts = [datasets.Dataset.from_file(str(path)) for path in self.rows.paths]
            return datasets.concatenate_datasets(parts)
        if isinstance(self.rows, ParquetStore):
            files = [str(path) for path in self.rows.paths]
            return datasets.load_dataset(
                "parquet", data_files={"train": files}, split="train", streaming=True
            )
        return datasets.IterableDataset.from_generator(_python_rows, gen_kwargs={"rows": self.rows})

    def model_columns(self) -> list[str]:
        """Columns that a model takes.

        Raises:
            DataError: the set is of a kind whose trainer makes its own batches.
        """
        names = [name for name in MODEL_COLUMNS if name in self.rows.columns]
        if "input_ids" not in names:
            raise DataError(
                f"{self.folder}: rows of kind {self.manifest['kind']} have no input_ids, and each trainer batches them "
                "its own way; use .datasets(), or iterate over the rows"
            )
        return names

    def collation(self, multiple: int, packed: bool) -> Collation:
        """How batches are made, with the tokenizer's own padding id (its end-of-text id where it has none)."""
        tokenizer = self.manifest["tokenizer"]
        for name in ("pad_token_id", "eos_token_id"):
            if tokenizer[name] is not None:
                return Collation(int(tokenizer[name]), multiple, packed)
        return Collation(0, multiple, packed)

    def _place(self, place: int) -> int:
        at = place + len(self) if place < 0 else place
        if not 0 <= at < len(self):
            raise IndexError(f"row {place} of a set of {len(self)}")
        return at

    def _read(self, start: int, stop: int) -> Iterator[Row]:
        for low in range(start, stop, _READ_ROWS):
            table = self.rows.table(self.rows.columns, low, min(low + _READ_ROWS, stop))
            for batch in table.to_batches():
                yield from row_dicts(batch)


def _python_rows(rows: RowStore) -> Iterator[Row]:
    for low in range(0, len(rows), _READ_ROWS):
        yield from rows.table(rows.columns, low, min(low + _READ_ROWS, len(rows))).to_pylist()
