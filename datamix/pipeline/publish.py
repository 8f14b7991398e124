"""Publish a set: its shards, rejects, removed records, tokenizer and report are completed in ``OUT/.building``, then moved
into place, the manifest last.

While a build runs, finished shards are in ``OUT/.building`` under their keys. So a build that is killed anywhere continues,
and a reader who looks for ``manifest.json`` sees all or nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix import mix
from datamix.core.errors import RecipeError
from datamix.core.hashing import digest
from datamix.exporters import SetInfo, Weighing
from datamix.pipeline import built_sets, ledger, outputs
from datamix.pipeline.building import BUILDING, hold_folder, remove_building, staging
from datamix.pipeline.manifest import Written, make_manifest
from datamix.pipeline.order_rows import costs_in_order
from datamix.pipeline.out_folder import (
    MANIFEST,
    check_out,
    clear_failed,
    owned_files,
    record_whole,
    remove_leftovers,
    save_manifest,
    switch,
)
from datamix.pipeline.prepare import read_batches
from datamix.pipeline.prepare_sources import BuildContext
from datamix.pipeline.progress import Screen
from datamix.pipeline.rows import RowReader, RowSet
from datamix.pipeline.source_rows import SourceRows
from datamix.pipeline.state import Arranged, Decided, Options, RenderReport, ResolvedBuild
from datamix.recipe import Recipe, Weighed
from datamix.tokenize import TokenizerFiles, copy_tokenizer, decoder

_VERSION = 1


@contextmanager
def hold(out: Path, recipe: Recipe, options: Options, screen: Screen) -> Iterator[None]:
    """Keep OUT for one build. Raises RecipeError where another build holds it, or files of somebody else are in the way."""
    check_out(out, options.cache, recipe, options.overwrite)
    with hold_folder(out):
        # Another build may have ended meanwhile.
        check_out(out, options.cache, recipe, options.overwrite)
        yield
        if (out / MANIFEST).exists():
            remove_leftovers(out, screen.say)
            remove_building(out)


def set_key(made: ResolvedBuild) -> str:
    """The fingerprint of a whole set: equal keys are equal bytes."""
    phases = [made.arranged.order.key, made.decided.fates.key, *(p.key for p in made.decided.packed)]
    tokenizer = made.tokenizer
    return digest(
        "set", _VERSION, made.recipe.sha256(), tokenizer.sha256, tokenizer.chat_template_sha256, phases
    )


def publish(
    made: ResolvedBuild, options: Options, context: BuildContext, render: RenderReport
) -> dict[str, Any]:
    """Write every format of every split, then the folder around them, then the manifest."""
    out, key, decided = options.out, set_key(made), made.decided
    splits = row_sets(made)
    tasks = outputs.shard_tasks(_written(made.recipe, splits), formats(made.recipe), key, out / BUILDING)
    threading.Thread(target=_load_ahead, args=(made.tokenizer,), daemon=True).start()
    done = list(zip(tasks, context.run("write", tasks), strict=True))
    staged = staging(out)
    listed = outputs.link(staged, done) + outputs.finish(staged, done)
    listed += ledger.write_rejects(staged, decided.sources)
    accounts = [
        ledger.account(decided, made.arranged, n, decided.references) for n in range(len(decided.sources))
    ]
    listed += ledger.write_removed(staged, decided, accounts)
    listed += _copy_tokenizer(staged, made.tokenizer)
    built_sets.save(options.cache, key, built_sets.BuiltSet(splits, _keys(decided, made.arranged)), out)
    commands = outputs.commands(formats(made.recipe), splits["train"].info)
    manifest = make_manifest(
        made, Written(key, options.sample, tuple(accounts), tuple(done), tuple(listed), commands)
    )
    with context.screen.phase("report", 1) as watch:
        costs = _row_costs(splits["train"], manifest["mixture"]["unit"])
        page = staged / "report.html"
        save_manifest(staged, manifest)
        page.write_text(render(staged, manifest, costs), encoding="utf-8")
        (staged / MANIFEST).unlink()
        manifest["outputs"].append(outputs.output(staged, page, "report", "report", 0))
        manifest["outputs"].sort(key=lambda entry: str(entry["path"]))
        watch.advance(1, "report")
    switch(out, staged, owned_files(out), (None, manifest), context.screen.say)
    clear_failed(out)
    record_whole(out, manifest, options.cache)
    return manifest


def remember(made: ResolvedBuild, options: Options) -> None:
    """Note a set that is already built in the cache, where the cache was deleted since."""
    key = set_key(made)
    if built_sets.load(options.cache.absolute(), key) is None:
        built = built_sets.BuiltSet(row_sets(made), _keys(made.decided, made.arranged))
        built_sets.save(options.cache, key, built, options.out)


def _load_ahead(tokenizer: TokenizerFiles) -> None:
    """What the report needs and takes a second to load, while workers write; it says itself what cannot be loaded."""
    with suppress(Exception):
        import_module("matplotlib.figure")
        decoder(Path(tokenizer.folder) / "tokenizer.json")


def formats(recipe: Recipe) -> list[outputs.FormatChoice]:
    """The formats that are written: Parquet always, and first."""
    named = [(w.name, tuple(sorted(w.options.items()))) for w in recipe.write]
    return named if any(name == "parquet" for name, _ in named) else [("parquet", ()), *named]


def _written(recipe: Recipe, splits: dict[str, RowSet]) -> dict[str, RowSet]:
    """The splits that are written: of a virtual set (``write: []``) only validation."""
    return splits if recipe.write else {name: rows for name, rows in splits.items() if name != "train"}


def _keys(decided: Decided, arranged: Arranged) -> tuple[str, ...]:
    """Every cached result that the rows are made of."""
    receipts = [arranged.order, decided.fates, *decided.packed]
    receipts += [r for ready in decided.sources for r in (*ready.prepared, *ready.encoded, *ready.fitted)]
    return tuple(r.key for r in receipts)


def row_sets(made: ResolvedBuild) -> dict[str, RowSet]:
    """Every split as integers and names of files."""
    info, decided, arranged = set_info(made), made.decided, made.arranged
    counts = arranged.order.counts
    train = RowSet(
        info,
        _all_rows(decided, "train")[: len(info.sources)],
        counts["rows"],
        arranged.order.folder / "order.arrow",
        tuple(counts["stage_ends"]),
    )
    wanted = made.recipe.mix.loss_norm
    if isinstance(wanted, Weighed):
        mean = mix.mean_loss_tokens(_row_costs(train, "loss_tokens"))
        info = replace(info, weighing=Weighing(wanted.trainer, mean))
        train = replace(train, info=info)
    splits = {"train": train}
    for rows, packed in zip(_all_rows(decided, "validation"), decided.packed, strict=True):
        num_rows = packed.counts["validation"]["rows"]
        if num_rows:
            splits[f"validation/{rows.source.name}"] = RowSet(info, (rows,), num_rows, None, (num_rows,))
    return splits


def set_info(made: ResolvedBuild) -> SetInfo:
    """What every format must know of the set."""
    recipe, tokenizer, decided, arranged = made.recipe, made.tokenizer, made.decided, made.arranged
    return SetInfo(
        name=recipe.name,
        kind=recipe.kind,
        packed=recipe.encode.pack == "best_fit",
        max_length=recipe.encode.max_length,
        vocab_size=tokenizer.vocab_size,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        sources=tuple(recipe.sources),
        stages=tuple(dict.fromkeys(s.name for s in arranged.quota.stages)),
        tokenizer_folder="tokenizer",
        shares=tuple(zip(recipe.sources, arranged.quota.shares, strict=True)),
        paired=is_paired(decided),
        meta=any(s.keep_meta for s in recipe.sources.values()),
    )


def is_paired(decided: Decided) -> bool:
    """Whether preference records are pairs; labelled completions (KTO) and pairs do not share a set."""
    kinds: dict[bool, str] = {}
    for ready in decided.sources:
        if ready.kind != "preference":
            return True
        for part in ready.shards.parts:
            for batch in read_batches(str(part.records)):
                labelled = batch.num_rows - batch.column("label").null_count
                kinds |= {True: ready.name} if labelled < batch.num_rows else {}
                kinds |= {False: ready.name} if labelled else {}
    if len(kinds) == 2:
        raise RecipeError(
            f"Source {kinds[True]} holds preference pairs and source {kinds[False]} labelled completions (KTO). A set holds "
            "one of them: build two sets, or take one source out."
        )
    return True in kinds or not kinds


def _all_rows(decided: Decided, split: str) -> tuple[SourceRows, ...]:
    return tuple(
        SourceRows(r.shards, packed.folder / f"{split}.arrow", decided.fates.folder / f"fates-{i}.arrow")
        for i, (r, packed) in enumerate(zip(decided.sources, decided.packed, strict=True))
    )


def _copy_tokenizer(out: Path, tokenizer: TokenizerFiles) -> list[dict[str, Any]]:
    """Keep the tokenizer and the template beside the rows that were made with them."""
    folder = out / "tokenizer"
    folder.mkdir()
    copy_tokenizer(tokenizer, folder)
    return [outputs.output(out, path, "tokenizer", "", 0) for path in sorted(folder.iterdir())]


def _row_costs(train: RowSet, unit: str) -> NDArray[np.int64]:
    """What each row of training costs, from the integers: labels need not be read back."""
    source, row = RowReader(train).locate(np.arange(train.num_rows))
    return costs_in_order(source, row, [s.bins for s in train.sources], unit)
