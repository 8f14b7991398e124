"""Other weights from a row on: a run that has trained so far goes on with a new order behind what it used.

A change is a row and the weights from there on. The rows before it stay as they are; behind it a new schedule begins at
the sources' cursors, under their caps, to the total that the set had (or as far as the caps reach). A set opened with
the same changes is the same set, so a loader's state holds them. Costs integers: ten bytes a row, stored in the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix import mix
from datamix.core.arrays import open_batch, write_batch
from datamix.core.errors import RecipeError
from datamix.core.hashing import digest
from datamix.pipeline import translate
from datamix.pipeline.leases import partial_name
from datamix.pipeline.order_rows import row_costs
from datamix.pipeline.rows import RowSet
from datamix.recipe import Recipe

Change = Mapping[str, Any]  # {"row": 24_000, "weights": {"general": 0.5, "medical": 0.5}}


@dataclass(frozen=True)
class _Order:
    """An order in the making. Arrays are ``[num_rows]``."""

    source: NDArray[np.uint16]
    row: NDArray[np.int64]
    stage_ends: tuple[int, ...]
    stages: tuple[str, ...]


def reweighed(
    rows: RowSet, manifest: Mapping[str, Any], changes: Sequence[Change], orders: Path
) -> tuple[RowSet, dict[str, Any]]:
    """The rows of a set and its manifest under changes of weights; the new order is left in the folder ``orders``.

    Raises RecipeError where one cannot be made.
    """
    key = digest("changed", manifest["key"], [[c["row"], dict(c["weights"])] for c in changes])
    recipe = Recipe.model_validate(manifest["recipe"])
    costs = [row_costs(s.bins, recipe.unit) for s in rows.sources]
    assert rows.order is not None
    batch = open_batch(rows.order)
    source, row = batch.column("source").to_numpy(), batch.column("row").to_numpy()
    order = _Order(source, row, rows.stage_ends, rows.info.stages)
    total = sum(int(cost[row[source == i]].sum()) for i, cost in enumerate(costs))
    for change in changes:
        order = _continued(order, recipe, costs, change, total)
    path = orders / f"{key}.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(partial_name(key))
    write_batch(partial, pa.record_batch({"source": order.source, "row": order.row}))
    partial.replace(path)
    info = replace(rows.info, stages=order.stages)
    changed = replace(rows, info=info, num_rows=len(order.row), order=path, stage_ends=order.stage_ends)
    entries = [{"row": int(c["row"]), "weights": dict(c["weights"])} for c in changes]
    return changed, {**manifest, "changes": entries}


def _continued(
    order: _Order, recipe: Recipe, costs: Sequence[NDArray[np.int64]], change: Change, total: int
) -> _Order:
    """The order up to the row of a change, and a new schedule behind it, to the same total."""
    at, names = int(change["row"]), list(recipe.sources)
    if not 0 < at < len(order.row):
        raise RecipeError(f"changes: row {at} is not inside the set, which has {len(order.row)} rows.")
    source, row = order.source[:at], order.row[:at]
    used = [row[source == i] for i in range(len(names))]
    for name, cost, rows in zip(names, costs, used, strict=True):
        first = mix.epoch_order(len(cost), recipe.seed, name, 0)[: len(rows)]
        if not np.array_equal(
            first, rows[: len(first)]
        ):  # the schedule goes on where a source's passes stopped
            raise RecipeError(
                f"changes: the rows of {name} are a sample of it (`datamix sweep --scale`), and weights change in whole sets "
                "only. Build the set at scale 1."
            )
    spent = [int(c[u].sum()) for c, u in zip(costs, used, strict=True)]
    stage = {"name": "rest", "share": 1.0, "weights": dict(change["weights"])}
    rest = recipe.resolved()
    size = total - sum(spent)
    rest["mix"] |= {"stages": [stage], "weights": None, "replay": None, "size": size, "on_short": "shrink"}
    left = _left(recipe, costs, spent, change["weights"])
    quota = translate.quota(Recipe.model_validate(rest), left)
    epochs = [s.max_epochs for s in recipe.sources.values()]
    plan = mix.schedule(costs, quota, epochs, recipe.seed, names, [len(u) for u in used])
    before = [end for end in order.stage_ends if end < at]
    return _Order(
        np.concatenate([source, plan.source]),
        np.concatenate([row, plan.row]),
        (*before, at, at + len(plan.row)),
        (*order.stages[: len(before) + 1], f"from row {at}"),
    )


def _left(
    recipe: Recipe, costs: Sequence[NDArray[np.int64]], spent: Sequence[int], weights: Mapping[str, float]
) -> list[mix.Available]:
    """What every source can still give under its cap."""
    epochs = [s.max_epochs for s in recipe.sources.values()]
    caps = mix.caps(costs, epochs, recipe.seed, list(recipe.sources))
    left: list[mix.Available] = []
    for (name, source), cost, cap, used in zip(recipe.sources.items(), costs, caps, spent, strict=True):
        if cap - used < (int(cost.min()) if len(cost) else 1) and (
            weights.get(name) or weights.get(source.group or "")
        ):
            raise RecipeError(
                f"changes: {name} is used up (max_epochs {source.max_epochs:g}). Give it weight 0 from there on."
            )
        left.append(translate.available_rows(name, cost, source.max_epochs, cap - used))
    return left
