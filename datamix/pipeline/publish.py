"""Publish a set: its shards, rejects, removed records, tokenizer and report are completed in ``OUT/.building``, then moved
into place, the manifest last.

While a build runs, finished shards are in ``OUT/.building`` under their keys. So a build that is killed anywhere continues,
and a reader who looks for ``manifest.json`` sees all or nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix import mix
from datamix.core.arrays import open_batch
from datamix.core.errors import RecipeError
from datamix.core.hashing import digest
from datamix.core.records import TURN_FIELDS
from datamix.exporters import Weighing
from datamix.pipeline import built_sets, ledger, origin, translate, write_shards
from datamix.pipeline.building import BUILDING, hold_folder, remove_building, staging
from datamix.pipeline.input_places import save_places
from datamix.pipeline.leases import Lease
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
from datamix.pipeline.rows import RowReader, RowSet, SourceRows
from datamix.pipeline.steps import Decided, Options, RenderPages, ResolvedBuild, set_info
from datamix.pipeline.write_shards import output
from datamix.recipe import Recipe, Weighed
from datamix.tokenize import TokenizerFiles, copy_tokenizer, decoder

CARD = "README.md"
_VERSION = 1


@contextmanager
def hold(out: Path, recipe: Recipe, options: Options, screen: Screen) -> Iterator[Lease | None]:
    """Keep OUT for one build, with a lease where machines share it. Raises RecipeError where another build holds it, or files of somebody else are in the way."""
    check_out(out, options.cache, recipe, options.overwrite)
    with hold_folder(out, options.engine != "local") as lease:
        # Another build may have ended meanwhile.
        check_out(out, options.cache, recipe, options.overwrite)
        yield lease
        if (out / MANIFEST).exists():
            remove_leftovers(out, screen.say)
            remove_building(out)


def set_key(made: ResolvedBuild) -> str:
    """The fingerprint of a whole set: equal keys are equal bytes."""
    phases = [made.arranged.order.key, made.decided.fates.key, *(p.key for p in made.decided.packed)]
    tokenizer = made.tokenizer.sha256, made.tokenizer.chat_template_sha256
    return digest("set", _VERSION, made.recipe.sha256(), *tokenizer, phases)


def publish(
    made: ResolvedBuild, options: Options, context: BuildContext, render: RenderPages
) -> dict[str, Any]:
    """Write every format of every split, then the folder around them, then the manifest."""
    out, key, decided = options.out, set_key(made), made.decided
    splits = row_sets(made)
    # of a virtual set (``write: []``) only validation is written
    written = {name: rows for name, rows in splits.items() if made.recipe.write or name != "train"}
    formats = [(w.name, tuple(sorted(w.options.items()))) for w in made.recipe.write]
    if all(name != "parquet" for name, _ in formats):
        formats = [("parquet", ()), *formats]
    tasks = write_shards.shard_tasks(written, formats, key, out / BUILDING)
    tasks += write_shards.shard_tasks(splits, options.exports, key, out / BUILDING)
    threading.Thread(target=_load_ahead, args=(made.tokenizer,), daemon=True).start()
    done = list(zip(tasks, context.run("write", tasks), strict=True))
    staged = staging(out)
    listed = write_shards.link(staged, done) + ledger.write_rejects(staged, decided)
    accounts = [ledger.account(decided, made.arranged, n) for n in range(len(decided.sources))]
    listed += ledger.write_removed(staged, decided, accounts)
    folder = staged / "tokenizer"  # beside the rows that were made with it
    folder.mkdir()
    copy_tokenizer(made.tokenizer, folder)
    listed += [output(staged, path, "tokenizer", "", 0) for path in sorted(folder.iterdir())]
    _note(made, key, splits, options)
    commands = write_shards.commands([*formats, *options.exports], splits["train"].info)
    manifest = make_manifest(
        made, Written(key, options.sample, tuple(accounts), tuple(done), tuple(listed), commands)
    )
    if options.exports:
        manifest["exports"] = write_shards.listed_exports(options.exports)
    with context.screen.phase("report", 1) as watch:
        costs = _row_costs(splits["train"], manifest["mixture"]["unit"])
        save_manifest(staged, manifest)
        pages = render(staged, manifest, costs)
        (staged / MANIFEST).unlink()
        owned = owned_files(out)
        for name, form, text in pages:
            if name == CARD and name not in owned and os.path.lexists(out / name):
                context.screen.say(f"{out / name} was not written by datamix and stays; the set has no card.")
                continue
            (staged / name).write_text(text, encoding="utf-8")
            manifest["outputs"].append(output(staged, staged / name, form, form, 0))
        manifest["outputs"].sort(key=lambda entry: str(entry["path"]))
        watch.advance(1, "report")
    context.check_held()
    switch(out, staged, owned, (None, manifest), context.screen.say)
    clear_failed(out)
    record_whole(out, manifest, options.cache)
    return manifest


def remember(made: ResolvedBuild, options: Options) -> None:
    """Store a set that is already built in the cache, where the cache was deleted since."""
    key = set_key(made)
    if built_sets.load(options.cache.absolute(), key) is None or not origin.is_known(options.cache, key):
        _note(made, key, row_sets(made), options)
    save_places(options.cache, key, made.recipe)


def _note(made: ResolvedBuild, key: str, splits: dict[str, RowSet], options: Options) -> None:
    """Store a set in the cache: its rows, what it was decided by, and where its inputs are."""
    built_sets.save(options.cache, key, built_sets.BuiltSet(splits, _keys(made)), options.out)
    inputs = origin.input_files(made.decided.sources, options.cache)
    origin.save(options.cache, key, origin.Origin(made.decided.select, made.scale, inputs))
    save_places(options.cache, key, made.recipe)


def _load_ahead(tokenizer: TokenizerFiles) -> None:
    """What the report needs and takes a second to load, while workers write; it says itself what cannot be loaded."""
    with suppress(Exception):
        decoder(Path(tokenizer.folder) / "tokenizer.json")


def _keys(made: ResolvedBuild) -> tuple[str, ...]:
    """Every cached result that the rows are made of."""
    decided = made.decided
    receipts = [made.arranged.order, decided.fates, *decided.packed]
    receipts += [r for s in decided.sources for r in (*s.prepared, *s.encoded, *s.fitted)]
    return tuple(r.key for r in receipts)


def row_sets(made: ResolvedBuild) -> dict[str, RowSet]:
    """Every split as integers and names of files."""
    decided, order = made.decided, made.arranged.order
    paired, (tools, kwargs) = _is_paired(decided), _has_tools_and_kwargs(decided)
    weighted = made.recipe.kind == "sft" and _has_loss_weights(decided)
    info = set_info(made.recipe, made.tokenizer, made.arranged.quota, paired, tools, kwargs, weighted)
    encode = translate.encode_spec(made.recipe, made.tokenizer) if info.kind == "pretrain" else None

    def rows(split: str) -> tuple[SourceRows, ...]:
        return tuple(
            SourceRows(s.shards, packed.folder / f"{split}.arrow", decided.fates.folder / f"fates-{i}.arrow")
            for i, (s, packed) in enumerate(zip(decided.sources, decided.packed, strict=True))
        )

    train = RowSet(
        info,
        rows("train")[: len(info.sources)],
        order.counts["rows"],
        order.folder / "order.arrow",
        tuple(order.counts["stage_ends"]),
        encode,
    )
    norm = made.recipe.mix.loss_norm
    if isinstance(norm, Weighed):
        mean = mix.mean_loss_tokens(_row_costs(train, "loss_tokens"))
        info = replace(info, weighing=Weighing(norm.trainer, mean))
        train = replace(train, info=info)
    splits = {"train": train}
    for source, packed in zip(rows("validation"), decided.packed, strict=True):
        if num_rows := packed.counts["validation"]["rows"]:
            splits[f"validation/{source.source.name}"] = RowSet(
                info, (source,), num_rows, None, (num_rows,), encode
            )
    return splits


def _is_paired(decided: Decided) -> bool:
    """Whether preference records are pairs; labelled completions (KTO) and pairs do not share a set."""
    kinds: dict[bool, str] = {}
    for source in decided.sources:
        if source.kind != "preference":
            return True
        for part in source.shards.parts:
            for batch in read_batches(str(part.records)):
                labelled = batch.num_rows - batch.column("label").null_count
                kinds |= {True: source.name} if labelled < batch.num_rows else {}
                kinds |= {False: source.name} if labelled else {}
    if len(kinds) == 2:
        raise RecipeError(
            f"Source {kinds[True]} holds preference pairs and source {kinds[False]} labelled completions (KTO). A set holds "
            "one of them: build two sets, or take one source out."
        )
    return True in kinds or not kinds


def _has_tools_and_kwargs(decided: Decided) -> tuple[bool, bool]:
    """Whether turns hold more than role and content, or records tools; whether records have template arguments."""
    tools = kwargs = False
    for source in decided.sources:
        for part in source.shards.parts if source.kind != "text" else ():
            for batch in read_batches(str(part.records)):
                columns = [
                    batch.column(n) for n in ("messages", "chosen", "rejected") if n in batch.schema.names
                ]
                fields = [c.values.field(name) for c in columns for name in TURN_FIELDS[2:]]
                tools |= any(field.null_count < len(field) for field in [*fields, batch.column("tools")])
                kwargs |= batch.column("kwargs").null_count < len(batch)
    return tools, kwargs


def _has_loss_weights(decided: Decided) -> bool:
    """Whether turns have weights other than 0 and 1."""
    shards = [shard for source in decided.sources for shard in source.shards.shards]
    files = [path for shard in shards for path in (shard.tokens, shard.fitted) if path is not None]
    return any((column := open_batch(path).column("weights")).null_count < len(column) for path in files)


def _row_costs(train: RowSet, unit: str) -> NDArray[np.int64]:
    """What each row of training costs, from the integers: labels need not be read back."""
    source, row = RowReader(train).locate(np.arange(train.num_rows))
    return costs_in_order(source, row, [s.bins for s in train.sources], unit)
