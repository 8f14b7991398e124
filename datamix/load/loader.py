"""Torch batches from a built set, exact to resume.

The order is index arithmetic (``Deal``), so a state is one number, the rows that the run has consumed, and resuming
costs the same anywhere. Worker processes take whole steps in turn; the loader counts what it handed out, not what workers
prefetched. Padded or joined rows go from the mapped file into the tensor with one copy.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datamix.core.errors import DataError
from datamix.load.batches import Batch, Collation, Deal, collate
from datamix.load.stores import RowStore

Identity = Mapping[str, str | None]  # content_sha256 (None of a virtual set) and key: either names the set


class RowStream(IterableDataset):  # type: ignore[misc]
    """The batches of one rank; each worker of a ``DataLoader(batch_size=None)`` takes every n-th step.

    Its own ``state_dict`` is a worker's, as torchdata's ``StatefulDataLoader`` asks for.
    """

    def __init__(
        self,
        rows: RowStore,
        columns: Sequence[str],
        how: Collation,
        deal: Deal,
        rank: int,
        identity: Identity,
    ) -> None:
        super().__init__()
        self.rows, self.columns, self.how, self.deal, self.rank = rows, tuple(columns), how, deal, rank
        self.identity = dict(identity)
        self.start = 0  # row where step 0 begins
        self.pin = False
        self._next: int | None = None  # step that this process takes next; None: its first
        self._resumed = False

    def __len__(self) -> int:
        """Steps that are left."""
        return self.deal.num_steps(self.start)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        number, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        first = self._next if self._resumed and self._next is not None else number
        self._resumed = False
        steps = range(first, len(self), stride)
        for step, batch in zip(steps, self._batches(steps), strict=True):
            self._next = step + stride
            yield batch

    def _batches(self, steps: range) -> Iterator[Batch]:
        for places in self.deal.walk(self.start, steps, self.rank):
            for batch in collate(self.rows, self.columns, places, self.how, self._block):
                if "weight" in batch:
                    batch["weight"] = torch.from_numpy(batch["weight"])
                yield batch

    def _block(self, num_columns: int, shape: tuple[int, int]) -> tuple[NDArray[np.int64], Sequence[Any]]:
        if self.pin:
            pinned = torch.empty((num_columns, *shape), dtype=torch.int64, pin_memory=True)
            return pinned.numpy(), pinned.unbind()
        block = np.empty((num_columns, *shape), np.int64)  # half the time of torch.empty, numpy and unbind
        return block, [torch.from_numpy(column) for column in block]

    def state_dict(self) -> dict[str, Any]:
        """The progress of this process; good for the same number of ranks and workers."""
        return {"start": self.start, "next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken."""
        self.start, self._next, self._resumed = int(state["start"]), state["next"], True


class TorchLoader:
    """An iterable of batches that knows how many rows the whole run has consumed."""

    def __init__(
        self, dataset: RowStream, num_workers: int, pin_memory: bool, changes: Sequence[Any] = ()
    ) -> None:
        self.dataset = dataset
        self.changes = list(changes)  # of weights, for whoever opens the set again
        self.batch_size = dataset.deal.batch_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self._rows = 0
        self._ended = False

    def __len__(self) -> int:
        """Steps of a whole pass."""
        return self.dataset.deal.num_steps(0)

    def __iter__(self) -> Iterator[Batch]:
        """Batches from the state to the end; once at the end, a new pass."""
        deal = self.dataset.deal
        if self._ended:
            self._rows, self._ended = 0, False
        self.dataset.start = self._rows
        for batch in self._batches():
            self._rows = min(self._rows + deal.window, deal.num_rows)
            yield batch
        if self._rows < deal.num_rows:
            warnings.warn(
                f"the last {deal.num_rows - self._rows} rows cannot be dealt to {deal.world_size} ranks and are left out",
                stacklevel=2,
            )
        self._ended = True

    def _batches(self) -> Iterator[Batch]:
        if self.num_workers == 0:
            self.dataset.pin = self.pin_memory
            yield from self.dataset
            return
        yield from DataLoader(
            self.dataset, batch_size=None, num_workers=self.num_workers, pin_memory=self.pin_memory
        )

    def state_dict(self) -> dict[str, Any]:
        """What to keep in a checkpoint: the same on every rank, good for any world size and batch size."""
        state = {"rows": self._rows, "seed": self.dataset.deal.seed, **self.dataset.identity}
        return state | ({"changes": self.changes} if self.changes else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the rows that ``state`` says were consumed.

        Raises:
            DataError: the state was taken on another set.
        """
        identity = self.dataset.identity
        if not any(identity[name] and identity[name] == state.get(name) for name in identity):
            of_state, of_set = (" / ".join(str(s.get(n))[:12] for n in identity) for s in (state, identity))
            raise DataError(
                f"the state was taken on another set: its {' / '.join(identity)} is {of_state}, this set's is {of_set}; open the set "
                "that the run began with"
            )
        if state["seed"] != self.dataset.deal.seed:
            raise DataError(
                f"the state was taken with seed={state['seed']}, this loader has seed={self.dataset.deal.seed}; "
                f"open it with .torch(..., seed={state['seed']})"
            )
        changes = state.get("changes", [])
        ahead = [c["row"] for c in self.changes[len(changes) :]]
        if changes != self.changes[: len(changes)] or any(row < state["rows"] for row in ahead):
            raise DataError(
                f"the state was taken at row {state['rows']} under other changes of weights; open the set with "
                f"changes={changes!r} and, behind them, changes at later rows alone"
            )
        self._rows, self._ended = int(state["rows"]), False
