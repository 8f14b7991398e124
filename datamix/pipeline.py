"""The main job: a recipe in, a training set out. The order of the phases stands here and nowhere else.

``ready`` (per record, cached by content) -> ``decide`` (fates) -> ``pack`` and ``schedule`` (integers) -> ``emit`` (rows)
-> ``publish`` (the folder OUT, manifest last). Every step is a task with a key, so a build that was stopped goes on where
it was, and one that changes only weights does only integers and the last copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datamix import mix, references
from datamix.recipe import translate
from datamix.recipe.preflight import preflight

from .contracts import Receipt
from .duplicates import ContaminationSpec
from .encode import EncodeSpec, TokenizerFiles
from .errors import DataError
from .phases import arrange, decide, inputs
from .phases.inputs import Bench, Ready
from .progress import Screen
from .recipe import Recipe
from .run import LocalEngine, default_workers


@dataclass(frozen=True)
class Options:
    """How a build runs; none of it changes a byte of what is built, but ``sample``."""

    out: Path
    cache: Path
    workers: int = 0  # 0: as many as there are processors
    sample: int | None = None  # only this many records of each file, for a first look
    overwrite: bool = False


@dataclass(frozen=True)
class Decided:
    """Every record's fate, and the rows of every source."""

    sources: tuple[Ready, ...]
    fates: Receipt
    packed: tuple[Receipt, ...]
    references: tuple[str, ...] = ()  # names of what else records were compared with


@dataclass(frozen=True)
class Arranged:
    """The whole order, as integers."""

    quota: mix.Quota
    order: Receipt


@dataclass(frozen=True)
class Made:
    """A set as it was decided: everything but its files."""

    recipe: Recipe
    tokenizer: TokenizerFiles
    decided: Decided
    arranged: Arranged


def open_bench(options: Options, screen: Screen) -> Bench:
    """The cache and the workers of one run."""
    home = options.cache / "store"
    home.mkdir(parents=True, exist_ok=True)
    return Bench(home, LocalEngine(options.workers or default_workers()), screen)


def prepare_sources(
    recipe: Recipe, bench: Bench, tokenizer: TokenizerFiles, sample: int | None
) -> list[Ready]:
    """Read and encode every source into the cache."""
    return inputs.ready(
        bench, translate.source_works(recipe, translate.encode_spec(recipe, tokenizer), sample)
    )


def decide_and_pack(recipe: Recipe, bench: Bench, encode: EncodeSpec, sources: Sequence[Ready]) -> Decided:
    """Fates, then rows."""
    asked = recipe.decontaminate
    split = recipe.validation
    contamination = None
    if asked is not None:
        contamination = ContaminationSpec(
            ngram=asked.ngram, min_overlap=asked.min_overlap, fields=asked.fields
        )
    spec = decide.DecideSpec(
        sources=tuple(r.shards for r in sources),
        seed=recipe.seed,
        max_records=tuple(s.max_records if (s := recipe.sources.get(r.name)) else None for r in sources),
        ranks=translate.ranks(recipe),
        dedupe=translate.dedupe_spec(recipe),
        max_removed_share=recipe.dedupe.max_removed_share if recipe.dedupe else 1.0,
        against=references.against(recipe, bench),
        contamination=contamination,
        evals=references.evals(recipe, bench),
        split=None if split is None or split.path else decide.Split(split.share, split.records),
        held_out=len(recipe.sources) if split is not None and split.path else None,
        leak=(translate.signing_spec(recipe) if split else None),
        contradictions=tuple(
            n for n, r in enumerate(sources) if translate.forbids_contradictions(recipe, r.name)
        ),
    )
    fates = bench.run("decide", [decide.task(spec, bench.home)])[0]
    packs = [
        arrange.PackSpec(
            r.shards,
            fates.folder / f"fates-{number}.arrow",
            encode,
            recipe.encode.pack or "none",
            recipe.encode.max_length,
            recipe.seed,
        )
        for number, r in enumerate(sources)
    ]
    packed = bench.run("pack", arrange.pack_tasks(packs, fates.key, bench.home))
    for ready, receipt in zip(sources[: len(recipe.sources)], packed, strict=False):
        _check_left(ready, fates, receipt)
    return Decided(tuple(sources), fates, tuple(packed), tuple(r.source.name for r in spec.against))


def _check_left(ready: Ready, fates: Receipt, packed: Receipt) -> None:
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
        f"Nothing of source {ready.name} is left to train on: {said}. Loosen what takes its records away, or take it out."
    )


def mix_rows(recipe: Recipe, bench: Bench, decided: Decided, scale: float = 1.0) -> Arranged:
    """The quota, then the order. Raises RecipeError where the caps cannot give what is asked."""
    packed = decided.packed[: len(recipe.sources)]
    quota = translate.quota(recipe, translate.available(recipe, packed, scale))
    spec = arrange.ScheduleSpec(
        names=tuple(recipe.sources),
        bins=tuple(r.folder / "train.arrow" for r in packed),
        unit=recipe.mix.unit or "tokens",
        quota=replace(quota, notes=(), scarcity=None),  # words change no order
        max_epochs=tuple(s.max_epochs for s in recipe.sources.values()),
        seed=recipe.seed,
        scale=scale,
    )
    order = bench.run("mix", [arrange.schedule_task(spec, [r.key for r in packed], bench.home)])[0]
    return Arranged(quota, order)


def build(recipe: Recipe, options: Options, screen: Screen | None = None) -> dict[str, Any]:
    """Build a training set; return its manifest. Raises DatamixError with what to do."""
    from datamix.sets.publish import finished, hold, publish, set_key

    from .planning import say_scarcity, say_scarcity_first

    screen = screen or Screen(quiet=True)
    tokenizer = preflight(recipe)
    with hold(options.out, recipe, options.overwrite):
        bench = open_bench(options, screen)
        try:
            encode = translate.encode_spec(recipe, tokenizer)
            works = translate.source_works(recipe, encode, options.sample)
            found = inputs.find_all(bench, works)
            inputs.warm(bench, works, found)
            said = say_scarcity_first(recipe, bench, encode, works, found)
            decided = decide_and_pack(recipe, bench, encode, inputs.ready(bench, works, found))
            made = Made(recipe, tokenizer, decided, mix_rows(recipe, bench, decided))
            if not said:
                say_scarcity(made.arranged.quota, screen)
            done = finished(options.out, set_key(made))
            if done is not None:
                screen.say(
                    f"{options.out} is already built from this recipe and these inputs: nothing to do."
                )
                return done
            return publish(made, options, bench)
        finally:
            bench.engine.close()
