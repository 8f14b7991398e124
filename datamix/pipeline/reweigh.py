"""Other weights from a row on: a run that has trained so far goes on with a new order behind what it used.

A change is a row and the weights from there on. The rows before it stay as they are; behind it a new schedule begins at
the sources' cursors, under their caps, to the total that the set had (or as far as the caps reach). A set opened with
the same changes is the same set, so a loader's state holds them. Costs integers: ten bytes a row, kept in the cache.
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
from datamix.pipeline.order_rows import row_costs
from datamix.pipeline.rows import RowSet
from datamix.recipe import Recipe

ORDERS = "orders"  # folder of the cache, one folder a set in it
Change = Mapping[str, Any]  # {"row": 24_000, "weights": {"general": 0.5, "medical": 0.5}}


@dataclass(frozen=True)
class _Order:
    """An order in the making. Arrays are ``[num_rows]``."""

    source: NDArray[np.uint16]
    row: NDArray[np.int64]
    stage_ends: tuple[int, ...]
    stages: tuple[str, ...]


def reweighed(
    rows: RowSet, manifest: Mapping[str, Any], changes: Sequence[Change], cache: Path
) -> tuple[RowSet, dict[str, Any]]:
    """The rows of a set and its manifest under changes of weights. Raises RecipeError where one cannot be made."""
    key = digest("changed", manifest["key"], [[c["row"], dict(c["weights"])] for c in changes])
    recipe = Recipe.model_validate(manifest["recipe"])
    unit = recipe.unit
    costs = [row_costs(s.bins, unit) for s in rows.sources]
    order = _opened(rows)
    total = sum(int(costs[i][order.row[order.source == i]].sum()) for i in range(len(costs)))
    for change in changes:
        order = _go_on(order, recipe, costs, change, total)
    path = cache / ORDERS / manifest["key"] / f"{key}.arrow"
    _save(path, order)
    info = replace(rows.info, stages=order.stages)
    made = replace(rows, info=info, num_rows=len(order.row), order=path, stage_ends=order.stage_ends)
    said = [{"row": int(c["row"]), "weights": dict(c["weights"])} for c in changes]
    return made, {**manifest, "changes": said}


def _opened(rows: RowSet) -> _Order:
    assert rows.order is not None
    batch = open_batch(rows.order)
    source, row = batch.column("source").to_numpy(), batch.column("row").to_numpy()
    return _Order(source, row, rows.stage_ends, rows.info.stages)


def _go_on(
    order: _Order, recipe: Recipe, costs: Sequence[NDArray[np.int64]], change: Change, total: int
) -> _Order:
    at, names = int(change["row"]), list(recipe.sources)
    if not 0 < at < len(order.row):
        raise RecipeError(f"changes: row {at} is not inside the set, which has {len(order.row)} rows.")
    source, row = order.source[:at], order.row[:at]
    used = [row[source == i] for i in range(len(names))]
    _check_order(recipe, costs, used)
    spent = [int(c[u].sum()) for c, u in zip(costs, used, strict=True)]
    quota = translate.quota(
        _rest(recipe, change, total - sum(spent)), _left(recipe, costs, spent, change["weights"])
    )
    epochs = [s.max_epochs for s in recipe.sources.values()]
    plan = mix.schedule(costs, quota, epochs, recipe.seed, names, [len(u) for u in used])
    before = [end for end in order.stage_ends if end < at]
    return _Order(
        np.concatenate([source, plan.source]),
        np.concatenate([row, plan.row]),
        (*before, at, at + len(plan.row)),
        (*order.stages[: len(before) + 1], f"from row {at}"),
    )


def _check_order(
    recipe: Recipe, costs: Sequence[NDArray[np.int64]], used: Sequence[NDArray[np.int64]]
) -> None:
    """What was used must be the head of each source's passes; of a scaled set it is not."""
    for name, cost, rows in zip(recipe.sources, costs, used, strict=True):
        first = mix.epoch_order(len(cost), recipe.seed, name, 0)[: len(rows)]
        if not np.array_equal(first, rows[: len(first)]):
            raise RecipeError(
                f"changes: the rows of {name} are a sample of it (`datamix sweep --scale`), and weights change in whole sets "
                "only. Build the set at scale 1."
            )


def _left(
    recipe: Recipe, costs: Sequence[NDArray[np.int64]], spent: Sequence[int], weights: Mapping[str, float]
) -> list[mix.Available]:
    """What every source can still give under its cap."""
    epochs = [s.max_epochs for s in recipe.sources.values()]
    caps = mix.caps(costs, epochs, recipe.seed, list(recipe.sources))
    found = []
    for (name, source), cost, cap, gone in zip(recipe.sources.items(), costs, caps, spent, strict=True):
        if cap - gone < int(cost.min()) and (weights.get(name) or weights.get(source.group or "")):
            raise RecipeError(
                f"changes: {name} is used up (max_epochs {source.max_epochs:g}). Give it weight 0 from there on."
            )
        found.append(
            mix.Available(
                name,
                len(cost),
                int(cost.sum()),
                source.max_epochs,
                int(cost.max()),
                int(cost.min()),
                cap - gone,
            )
        )
    return found


def _rest(recipe: Recipe, change: Change, size: int) -> Recipe:
    """The recipe of what is to come."""
    stage = {"name": "rest", "share": 1.0, "weights": dict(change["weights"])}
    said = recipe.resolved()
    said["mix"] |= {"stages": [stage], "weights": None, "replay": None, "size": size, "on_short": "shrink"}
    return Recipe.model_validate(said)


def _save(path: Path, order: _Order) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    batch = pa.record_batch({"source": order.source, "row": order.row})
    partial = path.with_suffix(".partial")
    write_batch(partial, batch)
    partial.replace(path)
