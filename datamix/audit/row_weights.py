"""Whether the column ``weight`` makes one average of the loss the other, counted again from the labels.

A row of n trained tokens weighs m / n for a trainer that averages over tokens, n / m for one that averages over examples; m
is the mean of n over the rows of train/ that train anything. So each weight tells m, and all must tell the one that is counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.audit.findings import Check, Findings

_ROUNDING = 1e-6  # of a float32


@dataclass
class RowWeights:
    """What the weights of all rows tell."""

    trainer: str  # token | example: what the trainer averages over
    found: Findings = field(default_factory=lambda: Findings("weights"))
    _rows: int = 0  # of train/, that train anything
    _loss_tokens: int = 0
    _least: float = np.inf  # mean that a weight tells
    _most: float = 0.0

    @staticmethod
    def of(manifest: dict[str, Any]) -> RowWeights | None:
        """An empty count; None of a set whose rows have no weight."""
        norm = manifest["recipe"]["mix"].get("loss_norm")
        return RowWeights(norm["trainer"]) if isinstance(norm, dict) else None

    def count(self, loss_tokens: NDArray[np.int64]) -> None:
        """Take rows of train/ into the mean. ``[num_rows]``."""
        self._rows += int(np.count_nonzero(loss_tokens))
        self._loss_tokens += int(loss_tokens.sum())

    def hold(self, column: pa.Array, loss_tokens: NDArray[np.int64], place: str, first: int) -> None:
        """Read what the weights of some rows tell; ``[num_rows]`` each."""
        weight = column.to_numpy(zero_copy_only=False).astype(np.float64)
        trains = loss_tokens > 0
        odd = np.flatnonzero(np.where(trains, ~(np.isfinite(weight) & (weight > 0)), weight != 0))
        if len(odd):
            self.found.add(f"{place} {first + odd[0]:,} weighs {weight[odd[0]]:g}", len(odd))
        sound = trains & (weight > 0)
        weight, tokens = weight[sound], loss_tokens[sound]
        told = weight * tokens if self.trainer == "token" else tokens / weight
        self._least = min(self._least, float(told.min(initial=np.inf)))
        self._most = max(self._most, float(told.max(initial=0)))

    def check(self) -> Check:
        """The verdict, once all rows are counted."""
        mean = self._loss_tokens / max(1, self._rows)
        for told in (self._least, self._most) if self._rows else ():
            if not abs(told - mean) <= _ROUNDING * mean:
                self.found.add(
                    f"a row weighs as if rows trained {told:,.6g} tokens in the mean; it is {mean:,.6g}"
                )
        return self.found.check(f"each follows from the row's trained tokens and their mean, {mean:,.6g}")
