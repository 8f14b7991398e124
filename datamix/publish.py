"""The folder OUT: written beside everything else, made visible file by file, the manifest last.

While a build runs, finished shards lie in ``OUT/.building`` under their keys; publishing links them to their names. So a
build that is killed anywhere goes on with what it has, and a reader who looks for ``manifest.json`` sees all or nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .contracts import Receipt, Task
from .encode import TokenizerFiles
from .errors import RecipeError
from .identity import digest, file_sha256
from .ledger import account, write_rejects, write_removed
from .phases import emit
from .phases.arrange import row_costs, shard_ends
from .phases.inputs import Bench
from .phases.rows import RowRange, SourceRows
from .recipe import Recipe
from .write import SetInfo, keeps, open_sink

if TYPE_CHECKING:
    from .build import Arranged, Decided, Options

_VERSION = 1
BUILDING = ".building"
MANIFEST = "manifest.json"
_KEPT = (BUILDING, MANIFEST)


@contextmanager
def hold(out: Path, recipe: Recipe, overwrite: bool) -> Iterator[None]:
    """Keep OUT for this process. Raises RecipeError where another build holds it, or something else stands there."""
    _check_out(out, recipe, overwrite)
    existed = out.exists()
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
        if (out / MANIFEST).exists():
            shutil.rmtree(out / BUILDING, ignore_errors=True)
    except RecipeError:
        if not existed and not any((out / BUILDING).glob("??")):
            shutil.rmtree(out, ignore_errors=True)
        raise
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


def finished(out: Path, recipe: Recipe, sample: int | None) -> dict[str, Any] | None:
    """The manifest of a set that stands in OUT whole and was built from this recipe, else None."""
    said = _manifest(out)
    if said.get("recipe_sha256") != recipe.sha256() or said.get("sample") != sample:
        return None
    whole = all(
        (out / o["path"]).is_file() and (out / o["path"]).stat().st_size == o["bytes"]
        for o in said["outputs"]
    )
    return said if whole else None


def publish(
    recipe: Recipe,
    options: Options,
    bench: Bench,
    tokenizer: TokenizerFiles,
    decided: Decided,
    arranged: Arranged,
) -> dict[str, Any]:
    """Write every format of every split, then the folder around them, then the manifest."""
    from .manifest import make_manifest, save_manifest

    out = options.out
    info = set_info(recipe, tokenizer, decided, arranged)
    tasks = _emit_tasks(recipe, out, info, decided, arranged)
    receipts = bench.run("write", tasks)
    _clear(out)
    outputs = _link(out, list(zip(tasks, receipts, strict=True)), info)
    outputs += _finish(out, list(zip(tasks, receipts, strict=True)), info, _all_rows(decided, "train"))
    outputs += write_rejects(out, decided.sources)
    references = recipe.dedupe.against if recipe.dedupe else ()
    accounts = [account(decided, arranged, number, references) for number in range(len(decided.sources))]
    outputs += write_removed(out, decided, accounts)
    outputs += _copy_tokenizer(out, tokenizer)
    manifest = make_manifest(
        recipe, options.sample, tokenizer, decided, arranged, accounts, receipts, outputs, out
    )
    with bench.screen.phase("report", 1) as watch:
        _write_report(out, manifest)
        watch.advance(1, "report")
    save_manifest(out, manifest)
    return manifest


def set_info(recipe: Recipe, tokenizer: TokenizerFiles, decided: Decided, arranged: Arranged) -> SetInfo:
    """What every format must know of the set."""
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
    from .phases.prepare import read_batches

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


def _emit_tasks(recipe: Recipe, out: Path, info: SetInfo, decided: Decided, arranged: Arranged) -> list[Task]:
    ends = tuple(arranged.order.counts["stage_ends"])
    ranges: list[tuple[str, int, RowRange]] = []
    start = 0
    for index, stop in enumerate(arranged.order.counts["shards"]):
        order = arranged.order.folder / "order.arrow"
        ranges.append(("train", index, RowRange(info, _all_rows(decided, "train"), start, stop, order, ends)))
        start = stop
    for held in _all_rows(decided, "validation"):
        start = 0
        for index, stop in enumerate(shard_ends(row_costs(held.bins, "tokens"))):
            ranges.append(
                (f"validation/{held.source.name}", index, RowRange(info, (held,), start, stop, None, (stop,)))
            )
            start = stop
    names = [(w.name, tuple(sorted(w.options.items()))) for w in recipe.write]
    if not any(name == "parquet" for name, _ in names):
        names.insert(0, ("parquet", ()))
    keys = [arranged.order.key, decided.fates.key, *(p.key for p in decided.packed)]
    made: list[Task] = []
    for name, options in names:
        for split, index, rows in ranges:
            open_sink(name, options, info, split)  # a wrong option is told before anything is written
            spec = emit.EmitSpec(name, options, split, index, rows)
            plain = [name, options, split, index, rows.start, rows.stop, rows.stage_ends, info]
            key = digest("emit", _VERSION, keys, plain)
            made.append(
                Task(f"write {name} {split}", key, emit.emit, spec, out / BUILDING, rows.stop - rows.start)
            )
    return made


def _clear(out: Path) -> None:
    """Take away what an earlier build left; the manifest first, so that nothing looks whole."""
    (out / MANIFEST).unlink(missing_ok=True)
    for path in sorted(out.iterdir()):
        if path.name not in _KEPT:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _link(out: Path, done: Sequence[tuple[Task, Receipt]], info: SetInfo) -> list[dict[str, Any]]:
    """Give every shard its name in OUT; say of each file what it is."""
    outputs: list[dict[str, Any]] = []
    for task, receipt in done:
        spec: emit.EmitSpec = task.spec
        base = format_folder(out, spec.format)
        for number, name in enumerate(receipt.counts["names"]):
            target = base / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _place(receipt.folder / name, target)
            rows = receipt.counts["rows"] if number == 0 else 0
            outputs.append(
                output(out, target, spec.format, spec.split, rows, keeps(spec.format, spec.options, info),
                       receipt.counts["sha256"][name])
            )  # fmt: skip
    return outputs


def _place(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)


def format_folder(out: Path, name: str) -> Path:
    """Where a format's files stand: Parquet is OUT itself."""
    return out if name == "parquet" else out / name


def _finish(
    out: Path, done: Sequence[tuple[Task, Receipt]], info: SetInfo, rows: tuple[SourceRows, ...]
) -> list[dict[str, Any]]:
    """Let each format write what stands once beside its shards."""
    from .phases.rows import Words
    from .write import needs_records

    shards: dict[tuple[str, Any, str], list[list[str]]] = {}
    for task, receipt in done:
        spec: emit.EmitSpec = task.spec
        shards.setdefault((spec.format, spec.options, spec.split), []).append(receipt.counts["names"])
    found: dict[Path, dict[str, Any]] = {}
    for (name, options, split), names in shards.items():
        sink = open_sink(name, options, info, split, Words(rows) if needs_records(name) else None)
        base = format_folder(out, name)
        for file in sink.finish(names, base):
            found[base / file] = {"format": name, "split": split, "keeps": keeps(name, options, info)}
    return [output(out, path, f["format"], f["split"], 0, f["keeps"]) for path, f in sorted(found.items())]


def output(
    out: Path,
    path: Path,
    name: str,
    split: str,
    rows: int,
    kept: Sequence[str] = (),
    sha256: str | None = None,
) -> dict[str, Any]:
    """One entry of the manifest's ``outputs``."""
    return {
        "path": path.relative_to(out).as_posix(),
        "format": name,
        "split": split,
        "rows": rows,
        "bytes": path.stat().st_size,
        "sha256": sha256 or file_sha256(path),
        "keeps": list(kept),
    }


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
    return [output(out, path, "tokenizer", "", 0) for path in sorted(folder.iterdir())]


def _write_report(out: Path, manifest: dict[str, Any]) -> None:
    from .manifest import save_manifest
    from .report import render_report

    building = (
        out / BUILDING / "manifest.json"
    )  # the report reads a whole set; this one is not told to be whole yet
    save_manifest(building.parent, manifest)
    (out / "report.html").write_text(render_report(out, manifest), encoding="utf-8")
