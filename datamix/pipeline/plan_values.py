"""The plan as plain values: what each source holds and gives, shares in every unit, what is scarce, disk and time."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datamix import mix
from datamix.exporters import needs_records
from datamix.pipeline import translate
from datamix.pipeline.engine import default_workers
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe
from datamix.tokenize import TokenizerFiles

# a token in OUT, compressed (measured)
_ROW_BYTES = {
    "pretrain": 4.0,
    "sft": 4.0,
    "preference": 8.0,
    "prompt": 8.0,
}
CACHE_BYTES = 5.0  # a token in the cache
SIGNATURE_BYTES = 600.0  # a record, of near duplicates
_FORMAT_BYTES = 10.0  # a token in a further format that holds numbers, at most
_START_SECONDS = 5.0  # of workers, tokenizer and report


@dataclass(frozen=True)
class SourcePlan:
    """One line of the plan. Counts are of one epoch of what is there."""

    name: str
    exact: bool
    stage: str  # of knowledge: "after dedupe" | "before dedupe" | "estimate"
    files: int
    records: float
    tokens: float
    loss_tokens: float
    rows: float
    largest_row: dict[str, int]
    smallest_row: dict[str, int]
    prepared_bytes: float
    margins: dict[str, float] = field(
        default_factory=dict
    )  # of records, tokens, loss tokens: holds 19 times of 20
    cached_tokens: float = 0.0  # of all prepared records, at full length
    bytes_per_second: float = 0.0  # of one worker that encodes


def available_of(recipe: Recipe, source: SourcePlan) -> mix.Available:
    """What a source can give; nothing where ``exclude`` leaves nothing of it."""
    unit = recipe.unit
    if not source.rows:
        return mix.Available(source.name, 0, 0, recipe.sources[source.name].max_epochs, 0, 0, 0)
    cost = {"records": source.records, "tokens": source.tokens, "loss_tokens": source.loss_tokens}[unit]
    return mix.Available(
        name=source.name,
        rows=max(1, round(source.rows)),
        cost=max(1, round(cost)),
        max_epochs=recipe.sources[source.name].max_epochs,
        largest_row=max(1, source.largest_row[unit]),
        smallest_row=max(1, source.smallest_row[unit]),
    )


def plan_values(
    recipe: Recipe,
    sources: Sequence[SourcePlan],
    available: Sequence[mix.Available],
    quota: mix.Quota,
    batch: int | None,
) -> dict[str, Any]:
    """What the sources hold, what the mixture takes of each, and what stops it from taking more."""
    shares = _shares(recipe, sources, quota)
    lines: list[dict[str, Any]] = []
    for number, (source, can) in enumerate(zip(sources, available, strict=True)):
        lines.append(
            {
                **asdict(source),
                "asked": quota.shares[number],
                "taken": quota.taken[number],
                "epochs": quota.epochs[number],
                "max_epochs": can.max_epochs,
                "unused_share": max(0.0, 1 - quota.epochs[number]),
                "effective": mix.effective_cost(can.cost, quota.epochs[number]),
                "shares": {unit: values[number] for unit, values in shares.items()},
                "binds": source.name in quota.binding,
            }
        )
    stages = [
        {"name": s.name, "size": s.length, "weights": dict(zip(recipe.sources, s.shares, strict=True))}
        for s in quota.stages
    ]
    plan: dict[str, Any] = {
        "name": recipe.name,
        "kind": recipe.kind,
        "unit": recipe.unit,
        "exact": all(s.exact for s in sources),
        "total": quota.total,
        "sources": lines,
        "groups": {name: list(group.members) for name, group in translate.groups(recipe).items()},
        "stages": stages,
        "loss_norm": recipe.mix.averaged_over,
        "binding": list(quota.binding),
        "scarcity": None if quota.scarcity is None else ladder(quota.scarcity),
        "needs": needs(recipe, sources, available, quota),
        "notes": list(quota.notes),
    }
    if batch is not None:
        plan["batch"] = {s.name: quota.shares[i] * batch for i, s in enumerate(sources)}
    return plan


def needs(
    recipe: Recipe, sources: Sequence[SourcePlan], available: Sequence[mix.Available], quota: mix.Quota
) -> list[dict[str, Any]]:
    """With one source used up to its cap, what each other must give at the shares asked, has under its cap, and lacks.

    A source for each that the mixture does not use up; in the unit of the mixture, and in records of each source's kind.
    """
    result: list[dict[str, Any]] = []
    for whole, share in zip(available, quota.shares, strict=True):
        if not share or whole.name in quota.binding:
            continue
        others: list[dict[str, Any]] = []
        for source, can, other in zip(sources, available, quota.shares, strict=True):
            if can.name != whole.name and other:
                asked = whole.most * other / share
                lacks = max(0.0, asked - can.most)
                others.append(
                    {
                        "name": can.name,
                        "needs": asked,
                        "has": can.most,
                        "lacks": lacks,
                        "records": lacks / can.cost * source.records,
                        "epochs": asked / can.cost,
                    }
                )
        result.append(
            {"source": whole.name, "gives": whole.most, "max_epochs": whole.max_epochs, "others": others}
        )
    return result


def costs(
    recipe: Recipe,
    options: Options,
    sources: Sequence[SourcePlan],
    quota: mix.Quota,
    tokenizer: TokenizerFiles,
) -> dict[str, Any]:
    """Disk for the set, its further formats and its tokenizer, disk for the cache, and the time of the build."""
    used = list(zip(sources, quota.epochs, strict=True))
    tokens, text = sum(s.tokens * e for s, e in used), sum(s.prepared_bytes * e for s, e in used)
    further = [output.name for output in recipe.write if output.name != "parquet"]
    exported = sum(text if needs_records(name) else tokens * _FORMAT_BYTES for name in further)
    files = [p.stat().st_size for p in Path(tokenizer.folder).glob("*.json")]
    signed = SIGNATURE_BYTES if translate.signing_spec(recipe) else 0.0
    folder = options.out.absolute()
    while not folder.exists():
        folder = folder.parent
    speeds = [s.prepared_bytes / s.bytes_per_second for s in sources if s.bytes_per_second]
    return {
        "out_bytes": tokens * _ROW_BYTES[recipe.kind] + exported + sum(files),
        "cache_bytes": sum(
            s.prepared_bytes + (s.cached_tokens or s.tokens) * CACHE_BYTES + s.records * signed
            for s in sources
        ),
        "seconds": _START_SECONDS + sum(speeds) / (options.workers or default_workers()) if speeds else None,
        "free_bytes": shutil.disk_usage(folder).free,
    }


def _shares(recipe: Recipe, sources: Sequence[SourcePlan], quota: mix.Quota) -> dict[str, tuple[float, ...]]:
    """Each source's part of the finished set in every unit; ``effective``: of the loss, where the recipe says its mean."""

    def parts(unit: str) -> tuple[float, ...]:
        return tuple(getattr(s, unit) * e for s, e in zip(sources, quota.epochs, strict=True))

    found = {unit: mix.shares(parts(unit)) for unit in ("records", "tokens", "loss_tokens")}
    if recipe.mix.averaged_over is not None:
        found["effective"] = mix.effective_shares(
            parts("rows"), parts("loss_tokens"), recipe.mix.averaged_over
        )
    return found


def ladder(scarcity: mix.Scarcity) -> dict[str, Any]:
    """The ladder as plain values: epochs and unused shares by source."""
    return {
        "scarce": list(scarcity.scarce),
        "ladder": [
            {
                "max_epochs": rung.max_epochs,
                "total": rung.total,
                "epochs": dict(zip(scarcity.names, rung.epochs, strict=True)),
                "unused": dict(zip(scarcity.names, rung.unused, strict=True)),
            }
            for rung in scarcity.ladder
        ],
    }
