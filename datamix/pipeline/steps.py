"""The steps of a build, shared by ``build``, ``plan`` and ``sweep``, and what they pass on.

``preflight`` finds every error that needs no work; after sources are prepared ``decide_and_pack`` gives every record a fate
and makes rows, ``mix_rows`` takes the quota of each source and orders them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix import mix
from datamix.core.contracts import Engine, Receipt
from datamix.core.errors import DataError, DatamixError, RecipeError
from datamix.core.hashing import canonical
from datamix.core.machine import failures_at
from datamix.dedup import ContaminationSpec
from datamix.exporters import SetInfo, open_sink
from datamix.pipeline import order_rows, pack_sources, references, select, translate
from datamix.pipeline.built_sets import mark_format
from datamix.pipeline.engine import LocalEngine, default_workers
from datamix.pipeline.engine_ray import RayEngine
from datamix.pipeline.engine_workers import WorkersEngine
from datamix.pipeline.exclusion import ListedFile, resolve
from datamix.pipeline.held_out import Split
from datamix.pipeline.leases import Lease, sweep
from datamix.pipeline.out_folder import is_own_file
from datamix.pipeline.prepare_sources import BuildContext, PreparedSource
from datamix.pipeline.progress import UNIT_WORDS, Screen
from datamix.pipeline.score_rules import SourceScores, file_digests
from datamix.pipeline.store import PARTIAL
from datamix.pipeline.tokenizer_cache import find_parsed
from datamix.pipeline.write_shards import FormatChoice
from datamix.read import find
from datamix.recipe import Recipe
from datamix.recipe.strict_yaml import Key
from datamix.tokenize import EncodeSpec, TokenizerFiles, check_templates, find_tokenizer

_MAX_UNMATCHED = 5  # entries of `exclude` that are spelled out

# (OUT, manifest, row costs) -> pages of the set: name, format and text.
RenderPages = Callable[[Path, dict[str, Any], NDArray[np.int64]], list[tuple[str, str, str]]]


@dataclass(frozen=True)
class Options:
    """How a build runs; none of it changes a byte of what is built, but ``sample``."""

    out: Path
    cache: Path
    workers: int = 0  # 0: as many as there are processors
    sample: int | None = None  # only this many records of each file, for a trial build
    overwrite: bool = False
    engine: str = "local"  # local | workers | ray
    exports: tuple[FormatChoice, ...] = ()  # formats to write beside those of the recipe
    address: str | None = None  # of a Ray cluster: local, or host:port


@dataclass(frozen=True)
class Decided:
    """Every record's fate, and the rows of every source."""

    sources: tuple[PreparedSource, ...]
    fates: Receipt
    packed: tuple[Receipt, ...]
    select: select.SelectSpec
    notes: tuple[str, ...] = ()  # what a person should know of it


@dataclass(frozen=True)
class Arranged:
    """The whole order, as integers."""

    quota: mix.Quota
    order: Receipt


@dataclass(frozen=True)
class ResolvedBuild:
    """A set as it was decided: everything but its files."""

    recipe: Recipe
    tokenizer: TokenizerFiles
    decided: Decided
    arranged: Arranged
    scale: float = 1.0  # of a sweep


def preflight(recipe: Recipe, cache: Path | None = None) -> TokenizerFiles:
    """Check every file, step, format and option that the recipe names; return its tokenizer. Raises RecipeError.

    The tokenizer's parsed form is taken from ``cache`` where it is there.
    """
    named: list[tuple[Key, str]] = []
    named += [(("sources", name, "path"), p) for name, source in recipe.sources.items() for p in source.path]
    named += [(("dedupe", "against"), p) for p in (recipe.dedupe.against if recipe.dedupe else ())]
    for number, evaluation in enumerate(recipe.decontaminate.against if recipe.decontaminate else ()):
        named += [(("decontaminate", "against", number, "path"), p) for p in evaluation.path]
    named += [(("validation", "path"), p) for p in (recipe.validation.path if recipe.validation else ())]
    checks: list[tuple[Key, Callable[[], Any]]] = [
        (key, partial(find, (path,), recipe.base)) for key, path in named if "://" not in path
    ]
    checks += [(("clean", i, s.name), partial(translate.step_options, s)) for i, s in enumerate(recipe.clean)]
    for number, output in enumerate(recipe.write):
        options = tuple(sorted(output.options.items()))
        checks.append(
            (("write", number), partial(open_sink, output.name, options, set_info(recipe), "train"))
        )
    problems: list[tuple[Key, str]] = []
    for key, check in checks:
        try:
            check()
        except DatamixError as error:
            problems.append((key, f"{error}{_hint(recipe, key, str(error))}"))
    if not any(key[0] == "clean" for key, _ in problems):
        translate.cleaning_steps(recipe, next(iter(recipe.sources)))  # what steps need to be installed
    tokenizer: TokenizerFiles | None = None
    try:
        known = partial(find_parsed, None if cache is None else cache / "store")
        tokenizer = find_tokenizer(recipe.tokenizer, recipe.base, recipe.chat_template, known)
        if recipe.kind != "pretrain":
            check_templates(tokenizer, canonical(recipe.chat_template_kwargs))
    except DatamixError as error:
        of_template = str(error).startswith("chat_template: ") and recipe.chat_template is not None
        place, text = "chat_template" if of_template else "tokenizer", str(error)
        problems.append(((place,), text.removeprefix("tokenizer: ").removeprefix("chat_template: ")))
    if tokenizer is None or problems:
        raise RecipeError(recipe.format_problems(problems))
    return tokenizer


def _hint(recipe: Recipe, key: Key, problem: str) -> str:
    """What to write for a path of a manifest, or one that looks like the id of a dataset on the Hub."""
    if "'<SOURCE>/" in problem:
        return " <SOURCE> stands for an absolute path in the recipe of a manifest: write where the files are."
    paths = recipe.sources[str(key[1])].path if key[0] == "sources" else ()
    ids = [path for path in paths if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path)]
    missing = [
        i for i in ids if not Path(recipe.base, i).exists() and not Path(recipe.base, i).parent.exists()
    ]
    return f" For the dataset of the Hub write hf://datasets/{missing[0]}." if missing else ""


def set_info(
    recipe: Recipe,
    tokenizer: TokenizerFiles | None = None,
    quota: mix.Quota | None = None,
    paired: bool = True,
    tools: bool = False,
    kwargs: bool = False,
    loss_weights: bool = False,
) -> SetInfo:
    """What every format must know of the set; before a build, without tokenizer and quota, enough to check options."""
    planned = [s.name for s in quota.stages] if quota else [s.name for s in recipe.mix.stages] or ["main"]
    shares = quota.shares if quota else [1.0] * len(recipe.sources)
    return SetInfo(
        name=recipe.name,
        kind=recipe.kind,
        packed=recipe.encode.pack == "best_fit",
        max_length=recipe.encode.max_length,
        vocab_size=tokenizer.vocab_size if tokenizer else 1,
        eos_token_id=tokenizer.eos_token_id if tokenizer else 0,
        pad_token_id=tokenizer.pad_token_id if tokenizer else 0,
        sources=tuple(recipe.sources),
        stages=tuple(dict.fromkeys(planned)),
        tokenizer_folder="tokenizer",
        shares=tuple(zip(recipe.sources, shares, strict=True)),
        paired=paired,
        meta=any(s.keep_meta or s.media == "keep" for s in recipe.sources.values()),
        tools=tools,
        chat_kwargs=canonical(recipe.chat_template_kwargs) if kwargs or recipe.chat_template_kwargs else None,
        loss_on=recipe.encode.loss_on,
        mask=tuple(recipe.encode.mask),
        loss_weights=loss_weights,
        media=any(s.media == "keep" for s in recipe.sources.values()),
    )


def open_context(options: Options, screen: Screen, outs: Sequence[Path] = ()) -> BuildContext:
    """The cache and the workers of one run; ``outs`` are the folders it writes, where that is not ``options.out``."""
    home = options.cache / "store"
    with failures_at(options.cache, "opening the cache", "name another place with --cache"):
        home.mkdir(parents=True, exist_ok=True)
        lease = Lease(options.cache, "build")
        sweep((home / PARTIAL).glob("*"), lease)
        if notice := mark_format(options.cache):
            screen.say(notice)
    engine: Engine
    if options.engine == "workers":
        engine = WorkersEngine(options.cache, options.out, lease, screen)
    elif options.engine == "ray":
        try:
            engine = RayEngine(
                options.address or "local",
                options.cache,
                options.out,
                lease,
                screen,
                options.workers or default_workers(),
            )
        except BaseException:
            lease.close()
            raise
    else:
        engine = LocalEngine(options.workers or default_workers())
    return BuildContext(home, engine, screen, is_own_file(outs or [options.out], options.cache), lease)


def select_spec(
    recipe: Recipe, context: BuildContext, sources: Sequence[PreparedSource]
) -> select.SelectSpec:
    """What decides the fate of every record: the recipe's rules, and the other records that they are compared with."""
    evals, split = recipe.decontaminate, recipe.validation
    files = translate.score_files(recipe)
    ends = np.cumsum([len(r.files) for r in sources])
    return select.SelectSpec(
        sources=tuple(r.shards for r in sources),
        seed=recipe.seed,
        max_records=tuple(s.max_records if (s := recipe.sources.get(r.name)) else None for r in sources),
        ranks=translate.ranks(recipe),
        dedupe=translate.dedupe_spec(recipe),
        max_removed_share=recipe.dedupe.max_removed_share if recipe.dedupe else 1.0,
        against=references.against(recipe, context),
        contamination=ContaminationSpec(evals.ngram, evals.min_overlap, evals.fields) if evals else None,
        evals=references.evals(recipe, context),
        split=None if split is None or split.path else Split(split.share, split.records, split.group_by),
        held_out=len(recipe.sources) if split is not None and split.path else None,
        leak=(translate.signing_spec(recipe) if split else None),
        contradictions=tuple(
            n for n, r in enumerate(sources) if translate.forbids_contradictions(recipe, r.name)
        ),
        score_files=files,
        score_digests=file_digests(files),
        scores=tuple(
            SourceScores(
                translate.score_rules(recipe, r.name),
                tuple(f.sha256 for f in r.files),
                int(end) - len(r.files),
            )
            for r, end in zip(sources, ends, strict=True)
            if files
        ),
    )


def select_records(
    recipe: Recipe, context: BuildContext, sources: Sequence[PreparedSource], spec: select.SelectSpec
) -> tuple[Receipt, select.SelectSpec, tuple[str, ...]]:
    """The fate of every record; ``spec`` with what the recipe excludes, and a note for each entry that excludes nothing."""
    excluded = resolve(recipe, [s.name for s in sources], listed_files(sources))
    spec = replace(spec, excluded=excluded.sources if any(excluded.sources) else ())
    notes = tuple(f"exclude: nothing matches {text}." for text in excluded.unmatched[:_MAX_UNMATCHED])
    if (more := len(excluded.unmatched) - _MAX_UNMATCHED) > 0:
        notes += (f"exclude: nothing matches {more:,} more entries.",)
    return context.run("select", [select.task(spec, context.home)])[0], spec, notes


def listed_files(sources: Sequence[PreparedSource]) -> list[ListedFile]:
    """The input files of all sources, in the order of the manifest's ``inputs``."""
    return [
        ListedFile(source.name, file.label, file.sha256, records)
        for source in sources
        for file, records in zip(source.files, source.file_records, strict=True)
    ]


def decide_and_pack(
    recipe: Recipe,
    context: BuildContext,
    encode: EncodeSpec,
    sources: Sequence[PreparedSource],
    spec: select.SelectSpec | None = None,
) -> Decided:
    """Fates, then rows; ``spec`` where it is known already. Raises DataError where nothing of a source is left to train on."""
    asked = spec or select_spec(recipe, context, sources)
    fates, spec, notes = select_records(recipe, context, sources, asked)
    packs: list[pack_sources.PackSpec] = []
    for number, source in enumerate(sources):
        file = fates.folder / f"fates-{number}.arrow"
        length = recipe.encode.max_length
        packs.append(pack_sources.PackSpec(source.shards, file, encode, recipe.pack, length, recipe.seed))
    packed = context.run("pack", pack_sources.pack_tasks(packs, fates.key, context.home))
    notes += _empty_sources(list(sources[: len(recipe.sources)]), fates, packed)
    for source, receipt in zip(sources[: len(recipe.sources)], packed, strict=False):
        train, held = receipt.counts["train"], receipt.counts["validation"]
        share = held["tokens"] / max(1, held["tokens"] + train["tokens"])
        alike = fates.counts.get("alike", {}).get(source.name, 0)
        notes += validation_notes(recipe, source.name, (held["records"], train["records"]), share, alike)
    for note in notes:
        context.screen.say(note)
    return Decided(tuple(sources), fates, tuple(packed), spec, notes)


def _empty_sources(
    sources: Sequence[PreparedSource], fates: Receipt, packed: Sequence[Receipt]
) -> tuple[str, ...]:
    """A note for each source that ``exclude`` left nothing of. Raises DataError where other steps left nothing, or all is gone."""
    empty = [s for s, r in zip(sources, packed, strict=False) if not r.counts["train"]["rows"]]
    for source in empty:
        is_excluded = select.EXCLUDED in fates.counts["sources"][source.name]["removed"]
        if not is_excluded or len(empty) == len(sources):
            remedy = "Exclude less of it" if is_excluded else "Relax the steps that removed them"
            raise DataError(
                f"Nothing of source {source.name} is left to train on: {_losses(source, fates)}. "
                f"{remedy}, or remove the source."
            )
    return tuple(
        f"exclude: nothing of source {source.name} is left; the other sources share its weight."
        for source in empty
    )


def _losses(source: PreparedSource, fates: Receipt) -> str:
    """What became of a source's records: ``3 cleaned (length_min_chars 3), 1 dropped (template: 'x' is undefined 1)``."""
    lost: dict[str, dict[str, int]] = {n: source.count(f"{n}_by") for n in ("rejected", "cleaned")}
    for fate, by in fates.counts["sources"][source.name].items():
        lost[fate] = {**lost.get(fate, {}), **by}
    messages = [name for receipt in source.encoded for name in receipt.counts["found"]]
    messages = sorted({name for name in messages if name.startswith("template: ")})
    parts = []
    for fate, by in lost.items():
        shown = [f"{name} {count:,}" for name, count in sorted(by.items()) if name not in ("", "template")]
        shown += messages[:3] if "template" in by else []
        if num := sum(by.values()):
            parts.append(f"{num:,} {fate}" + (f" ({'; '.join(shown)})" if shown else ""))
    return ", ".join(parts) or "none was read"


def validation_notes(
    recipe: Recipe, name: str, records: tuple[int, int], share: float, alike: int
) -> tuple[str, ...]:
    """Where what is held out of a source is not what was meant: another share of the tokens, or parts of what is trained.

    ``records``: held out and trained; ``share``: of the tokens, held out; ``alike``: begin like training records.
    """
    asked, (held, train) = recipe.validation, records
    notes: list[str] = []
    if asked and alike:
        notes.append(
            f"Validation: {alike:,} of the {held:,} records held out of {name} begin with the question of a training record, such "
            "as another part of the same conversation. `validation: {group_by: FIELD}` keeps the records with equal FIELD on one "
            "side."
        )
    if asked and asked.share and share >= max(2 * asked.share, asked.share + 0.01):
        notes.append(
            f"Validation: {held:,} of the {held + train:,} records of {name} hold {share:.0%} of its tokens, where "
            f"{100 * asked.share:.3g}% was asked: its records are few, or of unequal length. Split them before, or hold out a "
            "file of their kind: `validation: {path: FILE}`."
        )
    return tuple(notes)


def mix_rows(recipe: Recipe, context: BuildContext, decided: Decided, scale: float = 1.0) -> Arranged:
    """The quota, then the order. Raises RecipeError where the caps cannot give what is asked."""
    packed = decided.packed[: len(recipe.sources)]
    quota = translate.quota(recipe, translate.available(recipe, packed, scale), rows_known=True)
    if recipe.exclude and isinstance(recipe.mix.size, int) and quota.total < recipe.mix.size * scale:
        context.screen.say(
            f"exclude: what is left gives {quota.total:,} {UNIT_WORDS[recipe.unit]} of the {recipe.mix.size:,} asked; shares stay."
        )
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
    start, bound = 0, order.counts["bound"]  # the largest row
    for number, (stage, end) in enumerate(zip(quota.stages, order.counts["stage_ends"], strict=True)):
        if end == start:
            problem = (
                f"gets no row: it is {stage.length:.3g} of {mix.quantity(quota.total)} {recipe.unit}, and a row holds up to "
                f"{bound:,.0f}; a share of {math.ceil(1e6 * bound / quota.total) / 1e6:g} has one: raise it, or remove the stage"
            )
            raise RecipeError(recipe.format_problems([(("mix", "stages", number), problem)]))
        start = end
    return Arranged(quota, order)
