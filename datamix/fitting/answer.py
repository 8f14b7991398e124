"""The answer of ``datamix recommend`` as a value: a recommendation, its weights by source, and the kinds of runs it was made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamix.fitting.recommendation import BASELINES, Recommendation
from datamix.fitting.runs import KINDS, Kind
from datamix.fitting.swarm import Interval


@dataclass(frozen=True)
class KindOfRuns:
    """Runs of one size of model and one length of training."""

    kind: Kind
    num_runs: int
    chosen: bool
    rank: float | None  # correlation of the target with the chosen kind, over the mixtures that both have


@dataclass(frozen=True)
class Answer:
    """A recommendation, its weights by source, and what was written."""

    result: Recommendation
    weights: Mapping[str, Interval]
    kinds: tuple[KindOfRuns, ...]
    notes: tuple[str, ...]
    written: tuple[Path, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The answer as plain values; what is not known is None."""
        result, model = self.result, self.result.model
        against = result.gains.get(result.against)
        critical = result.critical
        return {
            "verdict": result.verdict,
            "because": result.because,
            "weights": {name: _values(w) for name, w in self.weights.items()},
            "target": {
                "spearman_cv": _number(model.spearman_cv if model else None),
                "rmse_cv": _number(model.rmse_cv if model else None),
                "spread": _number(result.spread),
                "noise": _number(result.noise),
            },
            "predicted": {
                name: _values(result.predicted[name]) if name in result.predicted else None
                for name in ("recommended", *BASELINES)
            },
            "critical": None
            if critical is None
            else {"source": critical.source, "share": _number(critical.share.mean), "low": _number(critical.share.low),
                  "high": _number(critical.share.high)},
            "difference": None if against is None else {"against": result.against, **_values(against)},
            "kinds": [
                {**dict(zip(KINDS, k.kind, strict=True)), "runs": k.num_runs, "chosen": k.chosen, "spearman": _number(k.rank)}
                for k in self.kinds
            ],
            "notes": list(self.notes),
        }  # fmt: skip


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.6g}")


def _values(interval: Interval) -> dict[str, float | None]:
    return {name: _number(getattr(interval, name)) for name in ("mean", "low", "high")}
