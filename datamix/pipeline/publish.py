"""The folder OUT: written beside everything else, made visible file by file, the manifest last.

While a build runs, finished shards lie in ``OUT/.building`` under their keys; publishing links them to their names. So a
build that is killed anywhere goes on with what it has, and a reader who looks for ``manifest.json`` sees all or nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamix import mix
from datamix.core.errors import DatamixError, RecipeError
from datamix.core.hashing import digest
from datamix.exporters import SetInfo, Weighing
from datamix.pipeline import built_sets, ledger, outputs
from datamix.pipeline.order_rows import costs_in_order
from datamix.pipeline.prepare import read_batches
from datamix.pipeline.prepare_sources import BuildContext
from datamix.pipeline.rows import RowReader, RowSet
from datamix.pipeline.source_rows import SourceRows
from datamix.recipe import Recipe, Weighed
from datamix.tokenize import TokenizerFiles, decoder

if TYPE_CHECKING:
    from datamix.pipeline.state import Arranged, Decided, Options, RenderReport, ResolvedBuild

_VERSION = 1
BUILDING = ".building"
MANIFEST = "manifest.json"
_KEPT = (BUILDING, MANIFEST)


@contextmanager
def hold(out: Path, recipe: Recipe, overwrite: bool) -> Iterator[None]:
    """Keep OUT for one build. Raises RecipeError where another build holds it, or something else stands there."""
    _check_out(out, recipe, overwrite)
    existed = out.exists()
    try:
        with hold_folder(out):
            yield
            if (out / MANIFEST).exists():
                shutil.rmtree(out / BUILDING, ignore_errors=True)
    except DatamixError:
        if not existed and not any((out / BUILDING).glob("??/*")):
            shutil.rmtree(out, ignore_errors=True)
        raise


@contextmanager
def hold_folder(out: Path) -> Iterator[None]:
    """Lock a folder for this process. Raises RecipeError with the pid of the one that holds it."""
    (out / BUILDING).mkdir(parents=True, exist_ok=True)
    handle = os.open(out / BUILDING / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            raise RecipeError(
                f"Another build (process {pid}) is writing {out}. Wait for it, stop it, or choose another folder with -o."
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


def _check_out(out: Path, recipe: Recipe, overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise RecipeError(f"{out} is a file. Choose another folder with -o.")
    if not out.exists() or (out / BUILDING).exists():
        if not (out / MANIFEST).exists():
            return
    elif not (out / MANIFEST).exists():
        if any(out.iterdir()):
            raise RecipeError(
                f"{out} exists and is not a training set of datamix. Choose another folder with -o."
            )
        return
    said = _manifest(out)
    if said.get("recipe_sha256") != recipe.sha256() and not overwrite:
        raise RecipeError(
            f"{out} holds a finished set built from another recipe ({said.get('name', 'unknown')}). Choose another folder with "
            "-o, or replace it with --overwrite."
        )


def _manifest(out: Path) -> dict[str, Any]:
    try:
        found = json.loads((out / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def set_key(made: ResolvedBuild) -> str:
    """The fingerprint of a whole set: equal keys are equal bytes."""
    phases = [made.arranged.order.key, made.decided.fates.key, *(p.key for p in made.decided.packed)]
    tokenizer = made.tokenizer
    return digest(
        "set", _VERSION, made.recipe.sha256(), tokenizer.sha256, tokenizer.chat_template_sha256, phases
    )


def finished(out: Path, key: str) -> dict[str, Any] | None:
    """The manifest of the set ``key`` where it stands in OUT whole, else None."""
    said = _manifest(out)
    if said.get("key") != key:
        return None
    whole = all(
        (out / o["path"]).is_file() and (out / o["path"]).stat().st_size == o["bytes"]
        for o in said["outputs"]
    )
    return said if whole else None


def publish(
    made: ResolvedBuild, options: Options, bench: BuildContext, render: RenderReport
) -> dict[str, Any]:
    """Write every format of every split, then the folder around them, then the manifest."""
    from datamix.pipeline.manifest import Written, make_manifest, save_manifest

    out, key, decided = options.out, set_key(made), made.decided
    splits = row_sets(made)
    tasks = outputs.shard_tasks(_written(made.recipe, splits), formats(made.recipe), key, out / BUILDING)
    threading.Thread(target=_load_ahead, args=(made.tokenizer,), daemon=True).start()
    done = list(zip(tasks, bench.run("write", tasks), strict=True))
    _clear(out)
    listed = outputs.link(out, done) + outputs.finish(out, done)
    listed += ledger.write_rejects(out, decided.sources)
    accounts = [
        ledger.account(decided, made.arranged, n, decided.references) for n in range(len(decided.sources))
    ]
    listed += ledger.write_removed(out, decided, accounts)
    listed += _copy_tokenizer(out, made.tokenizer)
    built_sets.save(options.cache, key, built_sets.BuiltSet(splits, _keys(decided, made.arranged)), out)
    commands = outputs.commands(formats(made.recipe), splits["train"].info)
    manifest = make_manifest(
        made, Written(key, options.sample, tuple(accounts), tuple(done), tuple(listed), commands)
    )
    with bench.screen.phase("report", 1) as watch:
        _write_report(render, out, manifest, _row_costs(splits["train"], manifest["mixture"]["unit"]))
        watch.advance(1, "report")
    save_manifest(out, manifest)
    return manifest


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


def _clear(out: Path) -> None:
    """Take away what an earlier build left; the manifest first, so that nothing looks whole."""
    (out / MANIFEST).unlink(missing_ok=True)
    for path in sorted(out.iterdir()):
        if path.name not in _KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _copy_tokenizer(out: Path, tokenizer: TokenizerFiles) -> list[dict[str, Any]]:
    """Keep the tokenizer and the template beside the rows that were made with them."""
    folder = out / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        source = Path(tokenizer.folder) / name
        if source.is_file():
            shutil.copyfile(source, folder / name)
    if tokenizer.chat_template is not None:
        (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")
    return [outputs.output(out, path, "tokenizer", "", 0) for path in sorted(folder.iterdir())]


def _row_costs(train: RowSet, unit: str) -> NDArray[np.int64]:
    """What each row of training costs, from the integers: labels need not be read back."""
    source, row = RowReader(train).locate(np.arange(train.num_rows))
    return costs_in_order(source, row, [s.bins for s in train.sources], unit)


def _write_report(
    render: RenderReport, out: Path, manifest: dict[str, Any], costs: NDArray[np.int64]
) -> None:
    from datamix.pipeline.manifest import save_manifest

    building = (
        out / BUILDING / "manifest.json"
    )  # the report reads a whole set; this one is not told to be whole yet
    save_manifest(building.parent, manifest)
    (out / "report.html").write_text(render(out, manifest, costs), encoding="utf-8")
