"""What a build would do, said before it does it.

Where a source lies in the cache its numbers are exact. Elsewhere a fixed sample of each source is read and encoded (up to
256 records of three of its files) and the rest is estimated from bytes: such numbers carry ``~``. ``--exact`` prepares and
encodes first, so that every number is the build's own.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from datamix import mix
from datamix.core.contracts import Receipt, Task
from datamix.core.errors import RecipeError
from datamix.formats import ShapeSpec
from datamix.pipeline import encode_pass, prepare, prepare_sources, translate
from datamix.pipeline.prepare_sources import BuildContext, SourceWork
from datamix.pipeline.progress import Screen, scarcity_text
from datamix.pipeline.scan import InputFile
from datamix.pipeline.steps import Options, decide_and_pack, open_context, preflight
from datamix.pipeline.store import Store, check_cache
from datamix.recipe import Recipe
from datamix.tokenize import EncodeSpec

_SAMPLE_RECORDS = 256
_WORTH_A_LOOK_BYTES = 64 << 20
_COMPRESSION = 3.0  # text bytes a stored byte, where a compressed file was not read whole
# a token in OUT, compressed (measured)
_ROW_BYTES = {
    "pretrain": 4.0,
    "sft": 4.0,
    "preference": 8.0,
    "prompt": 8.0,
}
_CACHE_BYTES = 5.0  # a token in the cache


class _NotCached(Exception):
    """Something would have to be done first."""


class _Lookup:
    """An engine that does nothing: it finds what is done, or says that it is not."""

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Receipt]]:
        for index, task in enumerate(tasks):
            found = Store(task.home).find(task.key)
            if found is None:
                raise _NotCached(task.label)
            yield index, found

    def warm(self, call: Callable[[Any], Any], spec: Any) -> None:
        pass

    def close(self) -> None:
        pass


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


def make_plan(
    recipe: Recipe, options: Options, exact: bool, batch: int | None, screen: Screen
) -> dict[str, Any]:
    """The plan as plain values. Raises every recipe error that a build would raise before it reads much."""
    check_cache(options.cache)
    context = open_context(options, screen)
    try:
        tokenizer = preflight(recipe)
        spec = translate.encode_spec(recipe, tokenizer)
        works = translate.source_works(recipe, spec, None)
        found = prepare_sources.scan_sources(context, works)
        for work, files in zip(works, found, strict=True):
            prepare_sources.record_kind(work, files)
        sources = _settled(
            recipe,
            context if exact else replace(context, engine=_Lookup(), screen=Screen(quiet=True)),
            spec,
            works,
        )
        if sources is None:
            own = len(recipe.sources)  # a validation file is not part of the mixture
            sources = _sample_sources(recipe, context, spec, works[:own], found[:own])
    finally:
        context.close()
    there = [_available(recipe, s) for s in sources]
    quota = translate.quota(recipe, there)
    return _plan_values(recipe, options, sources, there, quota, batch)


def report_scarcity_first(
    recipe: Recipe,
    context: BuildContext,
    spec: EncodeSpec,
    works: Sequence[SourceWork],
    found: Sequence[tuple[InputFile, ...]],
) -> bool:
    """Say what is scarce before the work of a build, from a sample of each source; returns whether it was looked for.

    Small inputs are not sampled: they are prepared about as soon as a sample is, and the build says it then.
    """
    own, found, screen = works[: len(recipe.sources)], found[: len(recipe.sources)], context.screen
    if sum(f.num_bytes for files in found for f in files) < _WORTH_A_LOOK_BYTES:
        return False
    sources = _sample_sources(recipe, replace(context, screen=Screen(quiet=True)), spec, own, found)
    try:
        quota = translate.quota(recipe, [_available(recipe, s) for s in sources])
    except RecipeError as error:
        screen.say(f"By a sample of the sources this will stop before anything is written: {error}")
        return True
    report_scarcity(quota, screen, "~")
    return True


def report_scarcity(quota: mix.Quota, screen: Screen, about: str = "") -> None:
    """Say which sources set the size, where more than half of another stays unused."""
    if quota.scarcity is not None:
        screen.say(scarcity_text(ladder(quota.scarcity), quota.unit, about))


def _settled(
    recipe: Recipe, context: BuildContext, spec: EncodeSpec, works: Sequence[SourceWork]
) -> list[SourcePlan] | None:
    """The exact numbers of a build that is prepared and packed; None where that is still to do."""
    try:
        ready = prepare_sources.prepare_sources(context, works)
        decided = decide_and_pack(recipe, context, spec, ready)
    except _NotCached:
        return None
    plans: list[SourcePlan] = []
    for source, receipt in zip(ready[: len(recipe.sources)], decided.packed, strict=False):
        counts = receipt.counts["train"]
        size = sum(b for r in source.prepared for _, b in r.counts["batches"])
        plans.append(
            SourcePlan(source.name, True, "after dedupe", len(source.files), counts["records"], counts["tokens"],
                       counts["loss_tokens"], counts["rows"], counts["largest"], counts["smallest"], size)
        )  # fmt: skip
    return plans


def _sample_sources(
    recipe: Recipe,
    context: BuildContext,
    spec: EncodeSpec,
    works: Sequence[SourceWork],
    found: Sequence[Sequence[InputFile]],
) -> list[SourcePlan]:
    """Estimate every source from a fixed sample: the heads of its first, middle and last file."""
    kinds = [prepare_sources.record_kind(work, files) for work, files in zip(works, found, strict=True)]
    heads: list[list[Task]] = []
    for work, files, kind in zip(works, found, kinds, strict=True):
        shape = ShapeSpec("", kind, (), work.system, work.keep_meta, work.kwargs, work.media)
        chosen = [files[i] for i in sorted({0, len(files) // 2, len(files) - 1})] if files else []
        slices = [prepare.parts([f], shape, work.steps, _SAMPLE_RECORDS, context.home) for f in chosen]
        # of a large file also the last slice: the first may hold one line above the bound, and nothing else
        heads.append([group[i].task for group in slices for i in sorted({0, len(group) - 1})])
    read = iter(context.run("sample", [task for group in heads for task in group]))
    receipts = [[next(read) for _ in group] for group in heads]
    tasks = [
        encode_pass.encode_tasks(work.request.source, prepare.windows(group), kind, spec, context.home)
        for work, group, kind in zip(works, receipts, kinds, strict=True)
    ]
    done = iter(context.run("sample", [task for group in tasks for task in group]))
    encoded = [[next(done) for _ in group] for group in tasks]
    for work, files, group in zip(works, found, receipts, strict=True):
        prepare_sources.check_source(replace(work, max_reject_share=1.0), files, group)
    return [
        _estimate(recipe, work.request.source, files, group, tokens)
        for work, files, group, tokens in zip(works, found, receipts, encoded, strict=True)
    ]


def _estimate(
    recipe: Recipe, name: str, found: Sequence[InputFile], read: Sequence[Receipt], encoded: Sequence[Receipt]
) -> SourcePlan:
    whole = len(read) == len(found) and all(max(r.counts["read"]) < _SAMPLE_RECORDS for r in read)
    size = sum(b for r in read for _, b in r.counts["batches"])
    stored = sum(f.num_bytes * (_COMPRESSION if f.compression else 1.0) for f in found)
    scale = 1.0 if whole else max(1.0, stored / max(1, sum(r.counts["raw_bytes"] for r in read) or size))
    usable, tokens, loss = (sum(r.counts[n] for r in encoded) * scale for n in ("usable", "tokens", "loss"))
    limit = recipe.sources[name].max_records
    if limit is not None and limit < usable:
        usable, tokens, loss = limit, tokens * limit / usable, loss * limit / usable
    longest = max((r.counts["longest"] for r in encoded), default=1)
    length = min(longest, recipe.encode.max_length or longest)
    packed = recipe.encode.pack in ("best_fit", "concat")
    rows = max(1.0, tokens / recipe.encode.max_length) if packed and recipe.encode.max_length else usable
    return SourcePlan(
        name=name,
        exact=whole,
        stage="before dedupe" if whole else "estimate",
        files=len(found),
        records=usable,
        tokens=tokens,
        loss_tokens=loss,
        rows=rows,
        largest_row={"records": 1, "tokens": length, "loss_tokens": length},
        smallest_row={"records": 1, "tokens": 1, "loss_tokens": 1},
        prepared_bytes=size * scale,
    )


def _available(recipe: Recipe, source: SourcePlan) -> mix.Available:
    unit = recipe.unit
    cost = {"records": source.records, "tokens": source.tokens, "loss_tokens": source.loss_tokens}[unit]
    return mix.Available(
        name=source.name,
        rows=max(1, round(source.rows)),
        cost=max(1, round(cost)),
        max_epochs=recipe.sources[source.name].max_epochs,
        largest_row=max(1, source.largest_row[unit]),
        smallest_row=max(1, source.smallest_row[unit]),
    )


def _plan_values(
    recipe: Recipe, options: Options, sources: Sequence[SourcePlan], there: Sequence[mix.Available],
    quota: mix.Quota, batch: int | None,
) -> dict[str, Any]:  # fmt: skip
    unit = recipe.unit
    lines: list[dict[str, Any]] = []
    shares = _shares(recipe, sources, quota)
    for number, (source, can) in enumerate(zip(sources, there, strict=True)):
        taken = quota.taken[number]
        lines.append(
            {
                **asdict(source),
                "asked": quota.shares[number],
                "taken": taken,
                "epochs": quota.epochs[number],
                "max_epochs": can.max_epochs,
                "unused_share": max(0.0, 1 - quota.epochs[number]),
                "effective": mix.effective_cost(can.cost, quota.epochs[number]),
                "shares": {unit: values[number] for unit, values in shares.items()},
                "binds": source.name in quota.binding,
            }
        )
    tokens = sum(line["tokens"] * line["epochs"] for line in lines)
    folder = options.out.absolute()
    while not folder.exists():
        folder = folder.parent
    cache = sum(line["prepared_bytes"] + line["tokens"] * _CACHE_BYTES for line in lines)
    plan: dict[str, Any] = {
        "name": recipe.name,
        "kind": recipe.kind,
        "unit": unit,
        "exact": all(s.exact and s.stage == "after dedupe" for s in sources),
        "total": quota.total,
        "sources": lines,
        "stages": [
            {
                "name": s.name,
                "size": s.length,
                "weights": dict(zip([x.name for x in sources], s.shares, strict=True)),
            }
            for s in quota.stages
        ],
        "loss_norm": recipe.mix.averaged_over,
        "binding": list(quota.binding),
        "scarcity": None if quota.scarcity is None else ladder(quota.scarcity),
        "notes": list(quota.notes),
        "out_bytes": tokens * _ROW_BYTES[recipe.kind],
        "cache_bytes": cache,
        "free_bytes": shutil.disk_usage(folder).free,
    }
    if batch is not None:
        plan["batch"] = {s.name: quota.shares[i] * batch for i, s in enumerate(sources)}
    return plan


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
