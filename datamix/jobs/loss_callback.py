"""Losses of every source while a model trains: a callback for transformers' ``Trainer`` and what is built on it.

Before the first step and every so many steps the model is evaluated, without dropout and without gradients, on the validation rows
of each source and on as many of its first training rows. Both are measured alike on the same model, so the first shows
forgetting (its change since step 0) and their gap shows overfitting. It appends to ``OUT/losses.jsonl`` and to nothing else.
Costs two passes over the validation rows each time; rows are read when they are needed. On several processes each evaluates
every n-th batch, as often as the others, and the sums are added up: model shards that compute together stay in step.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from transformers.trainer_callback import TrainerCallback

from datamix.core.arrays import IGNORE_INDEX, offsets_from_lengths
from datamix.core.errors import RecipeError
from datamix.core.losses import Curves, Loss, loss_line, read_losses
from datamix.load import TrainingSet, open_set
from datamix.load.batches import Batch, collate, numpy_block
from datamix.pipeline.built_sets import open_any
from datamix.pipeline.reweigh import Change

LOSSES = "losses.jsonl"
_HELD_OUT = "validation/"  # begins the name of a split; the source follows
TOLERANCE = 0.01  # nats above the start: less is not called forgetting
_RAISED = 0.05  # of the whole: by how much a proposal raises the share of what is forgotten
_ROWS_AT_ONCE = 1 << 16
Sums = dict[str, tuple[float, int]]  # by source: summed loss in nats, trained tokens


@dataclass(frozen=True)
class Proposal:
    """A change of weights for ``datamix.open(OUT, changes=[...])``, and why."""

    change: Change
    because: str


class LossCallback(TrainerCallback):
    """Append the losses of each source of the set OUT to ``OUT/losses.jsonl``, every so many steps and before the first.

    ``Trainer(..., callbacks=[datamix.LossCallback("out", every=100)])``. Raises RecipeError where the set holds nothing out.
    """

    def __init__(self, out: str | Path, every: int = 100) -> None:
        if every < 1:
            raise RecipeError(f"LossCallback: every={every}, and it should be 1 step or more.")
        self.path = Path(out) / LOSSES
        self.every = every
        self._trained = open_any(out)
        self._trained.model_columns()  # rows of pairs have none: said before the training begins
        splits = sorted({e["split"] for e in self._trained.manifest["outputs"] if e["format"] == "parquet"})
        held_out = [split for split in splits if split.startswith(_HELD_OUT)]
        if not held_out:
            raise RecipeError(
                f"LossCallback: {out} holds no validation rows, and losses are measured on them. Add `validation: {{share: "
                "0.01}}` to its recipe and build it again."
            )
        self._held_out = {split.removeprefix(_HELD_OUT): open_set(out, split) for split in held_out}
        self._rows = 0  # trained so far

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **events: Any) -> None:
        """Measure the model before training; a run that resumes has this in its file."""
        if state.global_step:
            return
        if state.is_world_process_zero and any(m.step for c in self._measured().values() for m in c):
            warnings.warn(
                f"{self.path} holds the losses of a run that began before, and this one begins at step 0: the later line of a "
                "step counts. Move the file away first where it is another run.",
                stacklevel=2,
            )
        self._measure(args, state, model, 0)

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, train_dataloader: Any = None,
        **events: Any,
    ) -> None:  # fmt: skip
        """Measure after every ``every`` steps, and after the last."""
        if state.global_step % self.every and state.global_step != state.max_steps:
            return
        self._measure(args, state, model, _rows_trained(args, state, train_dataloader))

    def propose(self) -> Proposal | None:
        """More weight, from the next row on, for the source whose validation loss is furthest above its start; None if none is.

        It changes no row: pass ``[proposal.change]`` as ``changes`` to ``datamix.open``, and go on from the loader's state.
        """
        rises = {}
        for (source, split), losses in self._measured().items():
            if source is not None and split == "validation" and losses[0].step == 0:
                rises[source] = (losses[-1].loss - losses[0].loss, losses[0], losses[-1])
        weights = self._weights()
        rises = {name: rise for name, rise in rises.items() if rise[0] > TOLERANCE and weights.get(name)}
        if not rises or not 0 < self._rows < len(self._trained):
            return None
        name = max(rises, key=lambda source: rises[source][0])
        rise, first, last = rises[name]
        share = min(weights[name] + _RAISED, (1 + weights[name]) / 2)
        rest = (1 - share) / (1 - weights[name]) if weights[name] < 1 else 0.0
        new = {source: share if source == name else weight * rest for source, weight in weights.items()}
        because = (
            f"{name}: its validation loss is {rise:.3f} above the start ({last.loss:.3f} at step {last.step:,}, {first.loss:.3f} at "
            f"step 0); from row {self._rows:,} on its weight is {share:.1%} instead of {weights[name]:.1%}."
        )
        return Proposal({"row": self._rows, "weights": new}, because)

    def _measured(self) -> Curves:
        return read_losses(self.path) if self.path.is_file() and self.path.stat().st_size else {}

    def _weights(self) -> dict[str, float]:
        """The weights of the stage that the next row is in, as shares."""
        end = 0
        weights: dict[str, float] = {}
        for stage in self._trained.manifest["mixture"]["stages"]:
            weights, end = stage["weights"], end + int(stage["rows"])
            if self._rows < end:
                break
        total = sum(weights.values())
        return {source: weight / total for source, weight in weights.items()}

    @cached_property
    def _tokens(self) -> NDArray[np.int64]:
        """Tokens before each row of a pass, ``[num_rows + 1]``."""
        lengths = []
        for low in range(0, len(self._trained), _ROWS_AT_ONCE):
            stop = min(low + _ROWS_AT_ONCE, len(self._trained))
            pieces = self._trained.rows.table(["records"], low, stop).column("records").combine_chunks()
            bounds = offsets_from_lengths(pieces.flatten().field("length").to_numpy())
            ends = np.concatenate([[0], np.cumsum(pieces.value_lengths().to_numpy())])
            lengths.append(np.diff(bounds[ends]))
        return offsets_from_lengths(np.concatenate(lengths or [np.empty(0, np.int64)]))

    @cached_property
    def _first_rows(self) -> dict[str, NDArray[np.int64]]:
        """Places of each source's first training rows, as many as it has validation rows."""
        found: dict[str, list[int]] = {name: [] for name in self._held_out}
        for low in range(0, len(self._trained), _ROWS_AT_ONCE):
            stop = min(low + _ROWS_AT_ONCE, len(self._trained))
            sources = self._trained.rows.table(["source"], low, stop).column("source")
            for name, places in found.items():
                missing = len(self._held_out[name]) - len(places)
                if missing:
                    at = np.flatnonzero(pc.equal(sources, name).to_numpy())
                    places += (low + at[:missing]).tolist()
        return {name: np.array(places, np.int64) for name, places in found.items() if places}

    def _measure(self, args: Any, state: Any, model: Any, rows: int) -> None:
        self._rows = rows
        passes, rest = divmod(rows, max(1, len(self._trained)))
        tokens = int(state.num_input_tokens_seen or passes * self._tokens[-1] + self._tokens[rest])
        # Documents of packed rows are kept apart by their positions, which models look for in batches of one row.
        batch_size = 1 if "position_ids" in self._trained.rows.columns else args.per_device_eval_batch_size
        was_training = model.training
        model.eval()
        try:
            held_out = {
                name: _evaluated(model, rows, np.arange(len(rows)), batch_size)
                for name, rows in self._held_out.items()
            }
            trained = {
                name: _evaluated(model, self._trained, places, batch_size)
                for name, places in self._first_rows.items()
            }
        finally:
            model.train(was_training)
        if state.is_world_process_zero:
            losses = self._lines(state.global_step, tokens if rows else 0, held_out, trained)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(map(loss_line, losses)))

    def _lines(self, step: int, tokens: int, held_out: Sums, trained: Sums) -> Iterator[Loss]:
        """Each source, and the whole: all validation tokens alike, training rows by what each source has in the set."""
        emitted = self._trained.manifest["sources"]
        for split, sums in (("validation", held_out), ("train", trained)):
            means = {name: total / count for name, (total, count) in sums.items() if count}
            sizes = {name: sums[name][1] if split == "validation" else emitted[name]["emitted"]["loss_tokens"] for name in means}  # fmt: skip
            for name, mean in means.items():
                yield Loss(step, tokens, name, split, mean)
            if whole := sum(sizes.values()):
                yield Loss(step, tokens, None, split, sum(means[n] * sizes[n] for n in means) / whole)


def _rows_trained(args: Any, state: Any, loader: Any) -> int:
    """Rows of the whole run: what a loader of ours counts, else steps of equal batches."""
    progress = loader.state_dict() if hasattr(loader, "changes") else {}
    if "rows" in progress:
        return int(progress["rows"])
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return int(state.global_step * per_step)


def _evaluated(
    model: Any, rows: TrainingSet, places: NDArray[np.int64], batch_size: int
) -> tuple[float, int]:
    """The summed loss of the rows at ``places``, in nats, and their trained tokens; over all processes."""
    import torch

    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank = torch.distributed.get_rank() if joined else 0
    world_size = torch.distributed.get_world_size() if joined else 1
    batches = [places[low : low + batch_size] for low in range(0, len(places), batch_size)]
    device = next(model.parameters()).device
    sums = torch.zeros(2, dtype=torch.float64, device=device if device.type != "mps" else "cpu")
    how = rows.collation(1, False)
    with torch.no_grad():
        for number in range(rank, -(-len(batches) // world_size) * world_size, world_size):
            counts = number < len(batches)  # else a forward pass that the other processes wait for
            one = batches[number if counts else 0][None]
            batch = next(collate(rows.rows, rows.model_columns(), one, how, numpy_block))
            loss, num_tokens = _loss(model, batch, device)
            if counts:
                sums += torch.tensor([loss, num_tokens], dtype=torch.float64, device=sums.device)
    if joined:
        torch.distributed.all_reduce(sums)
    return float(sums[0]), int(sums[1])


def _loss(model: Any, batch: Batch, device: Any) -> tuple[float, int]:
    """The summed loss of a batch over its trained tokens, row by row: the logits of one row at a time are made float32."""
    import torch

    given = {n: torch.from_numpy(batch[n]).to(device) for n in batch if n not in ("labels", "weight")}
    logits = model(**given, use_cache=False).logits
    labels = torch.from_numpy(batch["labels"]).to(device)[:, 1:]
    total, num_tokens = 0.0, 0
    for row, target in zip(logits[:, :-1], labels, strict=True):
        trained = target != IGNORE_INDEX
        total += float(
            torch.nn.functional.cross_entropy(row[trained].float(), target[trained], reduction="sum")
        )
        num_tokens += int(trained.sum())
    return total, num_tokens
