"""Mend or drop records, in the order a recipe asks for; every drop has one reason, every mend is counted.

A step is either a *mend* (text in, text out; ``pii`` makes several passes, each counted by itself), a *judge* (a text
in, a reason or nothing out) or a *check* (it must see the whole record). Steps are pure and know one batch only: the same batch gives the same answer wherever it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from datamix.clean.fields import Judge, Mend, Pass, judge_views, mend_batch
from datamix.clean.gopher import GopherQuality, GopherRepetition, judge_quality, judge_repetition
from datamix.clean.language import Language, judge_language, require_detector
from datamix.clean.length import Length, judge_length
from datamix.clean.markup import Boilerplate, Html, drop_boilerplate, strip_html
from datamix.clean.normalize import Normalize, normalize
from datamix.clean.pii import Pii, passes
from datamix.clean.preference_checks import PreferenceChecks, check_preference
from datamix.clean.sft_checks import SftChecks, check_sft
from datamix.clean.web import C4Lines, C4Pages, FineWebQuality, judge_c4, judge_fineweb, keep_c4_lines
from datamix.core.contracts import Cleaned
from datamix.core.records import Fields, RecordKind

__all__ = ["STEPS", "PreferenceChecks", "Step", "clean", "require"]

Check = Callable[[pa.RecordBatch, RecordKind, Any, Fields], pa.Array]  # -> reason or null per row

_MENDS: Mapping[str, tuple[type, Mend]] = {
    "normalize": (Normalize, normalize),
    "html": (Html, strip_html),
    "boilerplate": (Boilerplate, drop_boilerplate),
    "c4_lines": (C4Lines, keep_c4_lines),
}
_PASSES: Mapping[str, tuple[type, Callable[[Any], list[Pass]]]] = {
    "pii": (Pii, passes),
}
_JUDGES: Mapping[str, tuple[type, Judge]] = {
    "c4_pages": (C4Pages, judge_c4),
    "gopher_quality": (GopherQuality, judge_quality),
    "gopher_repetition": (GopherRepetition, judge_repetition),
    "fineweb_quality": (FineWebQuality, judge_fineweb),
    "language": (Language, judge_language),
}
_CHECKS: Mapping[str, tuple[type, Check]] = {
    "length": (Length, judge_length),
    "sft_checks": (SftChecks, check_sft),
    "preference_checks": (PreferenceChecks, check_preference),
}

STEPS: Mapping[str, type] = MappingProxyType(
    {name: options for table in (_MENDS, _PASSES, _JUDGES, _CHECKS) for name, (options, _) in table.items()}
)


@dataclass(frozen=True)
class Step:
    """One entry of a recipe's ``clean`` list."""

    name: str  # a key of STEPS
    options: Any  # an instance of STEPS[name]
    fields: Fields = "all"  # which turns it looks at
    sources: tuple[
        str, ...
    ] = ()  # where it applies; empty = every source (the caller picks the steps of a batch)


def clean(batch: pa.RecordBatch, kind: RecordKind, steps: Sequence[Step]) -> Cleaned:
    """Pass a batch through the steps in order; a dropped row counts under the first step that drops it.

    ``[{"text": "e\\u0301"}, {"text": ""}]`` through ``normalize`` and ``length: {min_chars: 1}`` gives the batch
    ``[{"text": "\\u00e9"}]``, ``dropped == {1: "length_min_chars"}`` and ``mended == {"normalize": 1}``.
    """
    dropped: dict[int, str] = {}
    mended: dict[str, int] = {}
    rows = np.arange(batch.num_rows)  # of the batch that came in
    for step in steps:
        if step.name in _MENDS or step.name in _PASSES:
            for once in _passes(step):
                batch, changed = mend_batch(batch, kind, step.fields, (once, step.options))
                mended[once.counter] = mended.get(once.counter, 0) + changed
            continue
        reasons = _reasons(batch, kind, step)
        keep = reasons.is_null()
        dropped.update(
            (int(row), reason)
            for row, reason in zip(rows, reasons.to_pylist(), strict=True)
            if reason is not None
        )
        if reasons.null_count < len(reasons):
            batch, rows = batch.filter(keep), rows[keep.to_numpy(zero_copy_only=False)]
    return Cleaned(batch, dict(sorted(dropped.items())), mended)


def require(steps: Sequence[Step]) -> None:
    """Raises RecipeError where a step needs an extra that is not installed; cheap enough to ask before work starts."""
    if any(step.name == "language" for step in steps):
        require_detector()


def _passes(step: Step) -> list[Pass]:
    if step.name in _MENDS:
        return [Pass(step.name, _MENDS[step.name][1])]
    return _PASSES[step.name][1](step.options)


def _reasons(batch: pa.RecordBatch, kind: RecordKind, step: Step) -> pa.Array:
    if step.name in _CHECKS:
        return _CHECKS[step.name][1](batch, kind, step.options, step.fields)
    return judge_views(batch, kind, step.fields, (_JUDGES[step.name][1], step.options))
