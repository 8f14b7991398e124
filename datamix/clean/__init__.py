"""Fix or drop records, in the order a recipe asks for; every drop has one reason, every fix is counted.

A step is either a *fix* (text in, text out; ``pii`` makes several passes, each counted by itself), a *judge*
(a text in, a reason or nothing out) or a *check* (it must see the whole record). Steps are pure and know one
batch only: the same batch gives the same answer everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from datamix.clean import language, markup, normalize, pii, record_checks, web_quality
from datamix.clean.fields import Fix, Judge, Pass, fix_batch, judge_views
from datamix.clean.record_checks import PreferenceChecks
from datamix.core.contracts import Cleaned
from datamix.core.records import Fields, RecordKind

__all__ = ["STEPS", "PreferenceChecks", "Step", "clean", "require"]

Check = Callable[[pa.RecordBatch, RecordKind, Any, Fields], pa.Array]  # -> reason or null per row

_FIXES: Mapping[str, tuple[type, Fix]] = {
    "normalize": (normalize.Normalize, normalize.normalize),
    "html": (markup.Html, markup.strip_html),
    "boilerplate": (markup.Boilerplate, markup.drop_boilerplate),
    "c4_lines": (web_quality.C4Lines, web_quality.keep_c4_lines),
}
_PASSES: Mapping[str, tuple[type, Callable[[Any], list[Pass]]]] = {"pii": (pii.Pii, pii.passes)}
_JUDGES: Mapping[str, tuple[type, Judge]] = {
    "c4_pages": (web_quality.C4Pages, web_quality.judge_c4),
    "gopher_quality": (web_quality.GopherQuality, web_quality.judge_quality),
    "gopher_repetition": (web_quality.GopherRepetition, web_quality.judge_repetition),
    "fineweb_quality": (web_quality.FineWebQuality, web_quality.judge_fineweb),
    "language": (language.Language, language.judge_language),
}
_CHECKS: Mapping[str, tuple[type, Check]] = {
    "length": (record_checks.Length, record_checks.judge_length),
    "sft_checks": (record_checks.SftChecks, record_checks.check_sft),
    "preference_checks": (PreferenceChecks, record_checks.check_preference),
}

# ``keep`` is done where the numbers are: fields as records are read, scores as their fates are decided.
STEPS: Mapping[str, type] = MappingProxyType(
    {name: options for table in (_FIXES, _PASSES, _JUDGES, _CHECKS) for name, (options, _) in table.items()}
    | {"keep": record_checks.Keep}
)


@dataclass(frozen=True)
class Step:
    """One entry of a recipe's ``clean`` list."""

    name: str  # a key of STEPS
    options: Any  # an instance of STEPS[name]
    fields: Fields = "all"  # which turns it reads
    # where it applies; empty = every source (the caller picks the steps of a batch)
    sources: tuple[str, ...] = ()


def clean(batch: pa.RecordBatch, kind: RecordKind, steps: Sequence[Step]) -> Cleaned:
    """Pass a batch through the steps in order; a dropped row counts under the first step that drops it.

    ``[{"text": "e\\u0301"}, {"text": ""}]`` through ``normalize`` and ``length: {min_chars: 1}`` gives the batch
    ``[{"text": "\\u00e9"}]``, ``dropped == {1: "length_min_chars"}`` and ``fixed == {"normalize": 1}``.
    """
    dropped: dict[int, str] = {}
    fixed: dict[str, int] = {}
    rows = np.arange(batch.num_rows)  # of the batch that came in
    for step in steps:
        name, options = step.name, step.options
        if name in _FIXES or name in _PASSES:
            fixes = [Pass(name, _FIXES[name][1])] if name in _FIXES else _PASSES[name][1](options)
            for fix in fixes:
                batch, num_changed = fix_batch(batch, kind, step.fields, fix, options)
                fixed[fix.counter] = fixed.get(fix.counter, 0) + num_changed
            continue
        if name in _CHECKS:
            reasons = _CHECKS[name][1](batch, kind, options, step.fields)
        else:
            reasons = judge_views(batch, kind, step.fields, _JUDGES[name][1], options)
        if reasons.null_count < len(reasons):
            stays = reasons.is_null().to_numpy(zero_copy_only=False)
            dropped.update(zip(rows[~stays].tolist(), reasons.drop_null().to_pylist(), strict=True))
            batch, rows = batch.filter(pa.array(stays)), rows[stays]
    return Cleaned(batch, dict(sorted(dropped.items())), fixed)


def require(steps: Sequence[Step]) -> None:
    """Raises RecipeError where a step needs an extra that is not installed; cheap enough to ask before work
    starts.
    """
    if any(step.name == "language" for step in steps):
        language.require_detector()
