"""What a build would do, reported before it does it.

Where a source is in the cache its numbers are exact. Else inputs up to 512 MB are read, cleaned and deduplicated for real, in
the cache, where the build finds it, and tokens are estimated from a sample of the records that are left; of larger inputs a
sample is read, spread over every file. Estimates carry ``~`` and a margin that holds 19 times of 20. ``--exact`` encodes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamix import mix
from datamix.core.contracts import Receipt, Task
from datamix.core.errors import DataError, RecipeError
from datamix.pipeline import estimate, prepare_sources, translate
from datamix.pipeline.cluster_plan import Cluster, simulate
from datamix.pipeline.estimate import EstimateSpec, record_sizes
from datamix.pipeline.plan_values import SourcePlan, available_of, costs, ladder, plan_values
from datamix.pipeline.prepare_sources import BuildContext, SourceWork
from datamix.pipeline.progress import Screen, scarcity_text
from datamix.pipeline.sampling import Scale, sample_parts
from datamix.pipeline.scan import InputFile
from datamix.pipeline.steps import (
    Options,
    decide_and_pack,
    open_context,
    preflight,
    select_records,
    select_spec,
    validation_notes,
)
from datamix.pipeline.store import Store, check_cache
from datamix.pipeline.tokenizer_cache import cached_tokenizer
from datamix.recipe import Recipe
from datamix.tokenize import EncodeSpec

_PREPARE_BYTES = 512 << 20  # of inputs that a plan reads whole
_WORTH_A_LOOK_BYTES = 64 << 20


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


def make_plan(
    recipe: Recipe,
    options: Options,
    exact: bool,
    batch: int | None,
    screen: Screen,
    cluster: Cluster | None = None,
) -> dict[str, Any]:
    """The plan as plain values, of a ``cluster`` too. Raises every recipe error that a build would raise before it reads much."""
    check_cache(options.cache)
    context = open_context(options, screen)
    try:
        tokenizer = cached_tokenizer(context, preflight(recipe, options.cache))
        spec = translate.encode_spec(recipe, tokenizer)
        works = translate.source_works(recipe, spec, None)
        files_of = prepare_sources.scan_sources(context, works)
        for work, files in zip(works, files_of, strict=True):
            prepare_sources.record_kind(work, files)
        known = _settled(
            recipe,
            context if exact else replace(context, engine=_Lookup(), screen=Screen(quiet=True)),
            spec,
            works,
        )
        if known is None:
            known = _estimate_sources(recipe, context, spec, works, files_of)
    finally:
        context.close()
    sources, notes = known
    available = [available_of(recipe, s) for s in sources]
    quota = translate.quota(recipe, available)
    plan = plan_values(recipe, sources, available, quota, batch) | costs(
        recipe, options, sources, quota, tokenizer
    )
    plan["notes"] += notes
    if cluster is not None:
        signs = translate.signing_spec(recipe) is not None
        plan["cluster"] = simulate(cluster, sources, files_of, plan["out_bytes"], signs)
    return plan


def report_scarcity_first(
    recipe: Recipe,
    context: BuildContext,
    spec: EncodeSpec,
    works: Sequence[SourceWork],
    files_of: Sequence[tuple[InputFile, ...]],
) -> bool:
    """Say what is scarce before the work of a build, from a sample of each source; returns whether it was looked for.

    Small inputs are not sampled: they are prepared about as soon as a sample is, and the build says it then.
    """
    screen = context.screen
    if sum(f.num_bytes for files in files_of for f in files) < _WORTH_A_LOOK_BYTES:
        return False
    sources, _ = _estimate_sources(recipe, context, spec, works, files_of)
    speeds = [s.prepared_bytes / s.bytes_per_second for s in sources if s.bytes_per_second]
    screen.expect({"sample": 0.0, "encode": sum(speeds) / screen.num_workers} if speeds else {})
    try:
        quota = translate.quota(recipe, [available_of(recipe, s) for s in sources])
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
) -> tuple[list[SourcePlan], list[str]] | None:
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
    return plans, list(decided.notes)


def _estimate_sources(
    recipe: Recipe,
    context: BuildContext,
    spec: EncodeSpec,
    works: Sequence[SourceWork],
    files_of: Sequence[tuple[InputFile, ...]],
) -> tuple[list[SourcePlan], list[str]]:
    """What every source holds, tokens by a sample; and notes.

    Inputs of some size are read, cleaned and deduplicated for real, where the build finds it. Of larger ones a sample of the
    tasks is done, spread over every file.
    """
    reading = [replace(work, encode=None) for work in works]
    notes: list[str] = []
    scales = [Scale() for _ in works]
    fates: list[Path | None] = [None] * len(works)
    selected, alike = "", {}
    if sum(f.num_bytes for files in files_of for f in files) <= _PREPARE_BYTES:
        prepared = prepare_sources.prepare_sources(context, reading, files_of)
        asked = select_spec(recipe, context, prepared)
        receipt, _, unmatched = select_records(recipe, context, prepared, asked)
        notes += unmatched
        fates = [receipt.folder / f"fates-{number}.arrow" for number in range(len(prepared))]
        selected, alike = receipt.key, receipt.counts.get("alike", {})
        shards = [source.shards for source in prepared]
        sizes = [sum(b for r in source.prepared for _, b in r.counts["batches"]) for source in prepared]
    else:
        sampled = [sample_parts(context, work, files) for work, files in zip(reading, files_of, strict=True)]
        shards, scales = [s for s, _ in sampled], [scale for _, scale in sampled]
        sizes = [int(record_sizes(s.parts).sum()) for s in shards]
        notes.append(
            "Above 512 MB a sample is read: numbers are before duplicates and validation are taken out."
        )
    own = len(recipe.sources)  # a validation file is not part of the mixture
    encode = recipe.encode
    specs = [
        EstimateSpec(s, fate, spec, encode.max_length, recipe.overlong, recipe.pack, recipe.seed)
        for s, fate in zip(shards[:own], fates, strict=False)
    ]
    receipts = context.run(
        "sample",
        [estimate.task(s, selected, size, context.home) for s, size in zip(specs, sizes, strict=False)],
    )
    plans: list[SourcePlan] = []
    for name, files, size, scale, receipt in zip(
        recipe.sources, files_of, sizes, scales, receipts, strict=False
    ):
        counts = receipt.counts
        held = counts["held_records"], counts["records"]
        notes += validation_notes(recipe, name, held, counts["held_share"], alike.get(name, 0))
        plans.append(_source_plan(recipe, name, len(files), size, scale, counts))
    return plans, notes


def _source_plan(
    recipe: Recipe, name: str, num_files: int, size: int, scale: Scale, counts: dict[str, Any]
) -> SourcePlan:
    usable, tokens, loss = (counts[n] * scale.factor for n in ("usable", "tokens", "loss"))
    is_excluded = bool(recipe.exclude) and not counts["records"]
    if not usable and not is_excluded:
        why = "no record is left to encode. Relax the steps that removed them"
        if counts["records"]:
            limit = recipe.encode.max_length
            why = f"none of a sample of its records can be encoded (max_length {limit}). Raise it, choose another `overlong`"
        raise DataError(f"Nothing of source {name} would be left to train on: {why}, or remove the source.")
    most = recipe.sources[name].max_records if scale.factor != 1.0 else None  # else it is applied already
    part = min(1.0, most / usable) if most else 1.0
    margins = {
        "records": scale.margin(counts["margins"]["usable"], counts["usable"], scale.records),
        "tokens": scale.margin(counts["margins"]["tokens"], counts["tokens"], scale.bytes),
        "loss_tokens": scale.margin(counts["margins"]["loss"], counts["loss"], scale.bytes),
    }
    length, packed = recipe.encode.max_length, recipe.encode.pack in ("best_fit", "concat")
    longest, smallest = (max(1, min(n, length or n)) for n in (counts["longest"], counts["smallest"]))
    return SourcePlan(
        name=name,
        exact=False,
        stage="tokens sampled" if scale.factor == 1.0 else "estimate",
        files=num_files,
        records=usable * part,
        tokens=tokens * part,
        loss_tokens=loss * part,
        rows=max(min(usable, 1.0), tokens * part / length) if packed and length else usable * part,
        largest_row={"records": 1, "tokens": longest, "loss_tokens": longest},
        smallest_row={"records": 1, "tokens": smallest, "loss_tokens": 1},
        prepared_bytes=size * scale.factor,
        margins={unit: margin * part for unit, margin in margins.items()},
        cached_tokens=counts["cached_tokens"] * scale.factor,
        bytes_per_second=counts["bytes_per_second"],
    )
