"""The steps of a build after its sources are prepared: fates and rows, then the quota and the order.

Shared by ``build``, ``plan`` and ``sweep``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datamix.core.contracts import Receipt
from datamix.core.errors import DataError
from datamix.dedup import ContaminationSpec
from datamix.pipeline import order_rows, pack_sources, references, select, translate
from datamix.pipeline.built_sets import mark_format
from datamix.pipeline.engine import LocalEngine, default_workers
from datamix.pipeline.out_folder import is_own_file
from datamix.pipeline.prepare_sources import BuildContext, PreparedSource
from datamix.pipeline.progress import Screen
from datamix.pipeline.state import Arranged, Decided, Options
from datamix.recipe import Recipe
from datamix.tokenize import EncodeSpec


def open_context(options: Options, screen: Screen, outs: Sequence[Path] = ()) -> BuildContext:
    """The cache and the workers of one run; ``outs`` are the folders it writes, where that is not ``options.out``."""
    home = options.cache / "store"
    home.mkdir(parents=True, exist_ok=True)
    if notice := mark_format(options.cache):
        screen.say(notice)
    return BuildContext(
        home,
        LocalEngine(options.workers or default_workers()),
        screen,
        is_own_file(outs or [options.out], options.cache),
    )


def decide_and_pack(
    recipe: Recipe, context: BuildContext, encode: EncodeSpec, sources: Sequence[PreparedSource]
) -> Decided:
    """Fates, then rows."""
    asked = recipe.decontaminate
    split = recipe.validation
    contamination = None
    if asked is not None:
        contamination = ContaminationSpec(
            ngram=asked.ngram, min_overlap=asked.min_overlap, fields=asked.fields
        )
    spec = select.SelectSpec(
        sources=tuple(r.shards for r in sources),
        seed=recipe.seed,
        max_records=tuple(s.max_records if (s := recipe.sources.get(r.name)) else None for r in sources),
        ranks=translate.ranks(recipe),
        dedupe=translate.dedupe_spec(recipe),
        max_removed_share=recipe.dedupe.max_removed_share if recipe.dedupe else 1.0,
        against=references.against(recipe, context),
        contamination=contamination,
        evals=references.evals(recipe, context),
        split=None if split is None or split.path else select.Split(split.share, split.records),
        held_out=len(recipe.sources) if split is not None and split.path else None,
        leak=(translate.signing_spec(recipe) if split else None),
        contradictions=tuple(
            n for n, r in enumerate(sources) if translate.forbids_contradictions(recipe, r.name)
        ),
    )
    fates = context.run("select", [select.task(spec, context.home)])[0]
    packs = [
        pack_sources.PackSpec(
            r.shards,
            fates.folder / f"fates-{number}.arrow",
            encode,
            recipe.pack,
            recipe.encode.max_length,
            recipe.seed,
        )
        for number, r in enumerate(sources)
    ]
    packed = context.run("pack", pack_sources.pack_tasks(packs, fates.key, context.home))
    for ready, receipt in zip(sources[: len(recipe.sources)], packed, strict=False):
        _check_left(ready, fates, receipt)
    return Decided(tuple(sources), fates, tuple(packed), tuple(r.source.name for r in spec.against))


def _check_left(ready: PreparedSource, fates: Receipt, packed: Receipt) -> None:
    if packed.counts["train"]["rows"]:
        return
    gone = {
        "rejected": sum(ready.count("rejected_by").values()),
        "cleaned": sum(ready.count("cleaned_by").values()),
    }
    gone |= {
        fate: sum(by.values()) for fate, by in fates.counts["sources"][ready.name].items() if fate != "pool"
    }
    said = ", ".join(f"{count:,} {fate}" for fate, count in gone.items() if count) or "none was read"
    raise DataError(
        f"Nothing of source {ready.name} is left to train on: {said}. Relax the steps that removed them, or remove the source."
    )


def mix_rows(recipe: Recipe, context: BuildContext, decided: Decided, scale: float = 1.0) -> Arranged:
    """The quota, then the order. Raises RecipeError where the caps cannot give what is asked."""
    packed = decided.packed[: len(recipe.sources)]
    quota = translate.quota(recipe, translate.available(recipe, packed, scale))
    spec = order_rows.ScheduleSpec(
        names=tuple(recipe.sources),
        bins=tuple(r.folder / "train.arrow" for r in packed),
        unit=recipe.unit,
        quota=replace(quota, notes=(), scarcity=None),  # words change no order
        max_epochs=tuple(s.max_epochs for s in recipe.sources.values()),
        seed=recipe.seed,
        scale=scale,
    )
    order = context.run("order", [order_rows.schedule_task(spec, [r.key for r in packed], context.home)])[0]
    return Arranged(quota, order)
