"""``datamix exclude``: a finished set, and every set from the same preparation, without some records.

Only integers are decided anew, from what the cache noted of each set: fates, rows and order; then rows are copied. Nothing is read,
cleaned or encoded again, and the inputs need not be there. The result is, byte for byte, what a build leaves whose recipe has the
same ``exclude``. All sets are decided before the first is changed; a command that was stopped continues when it runs
again, but where it was stopped while files of OUT moved: that set has no manifest then, and is built again before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from datamix.core.arrays import open_batch
from datamix.core.contracts import Receipt
from datamix.core.errors import DataError, RecipeError
from datamix.jobs.build import finish
from datamix.pipeline import encode_pass, origin, prepare, select, translate
from datamix.pipeline.built_sets import all_sets, built_set, cache_of, folders_of
from datamix.pipeline.exclusion import ListedFile, Resolved, resolve
from datamix.pipeline.exporting import finished_manifest
from datamix.pipeline.input_places import input_places
from datamix.pipeline.prepare_sources import BuildContext, PreparedSource
from datamix.pipeline.progress import Screen
from datamix.pipeline.publish import hold
from datamix.pipeline.shards import SourceShards
from datamix.pipeline.steps import Options, ResolvedBuild, decide_and_pack, mix_rows, open_context
from datamix.pipeline.store import Store
from datamix.pipeline.write_shards import further_formats
from datamix.recipe import Recipe
from datamix.recipe.excluded import Excluded, union
from datamix.tokenize import find_tokenizer

_COPIES = ("exact", "near", "leaked")


@dataclass(frozen=True)
class SetWithout:
    """One set as it is now, and what changed in it."""

    out: Path
    manifest: dict[str, Any]
    rows_before: int
    returned: tuple[dict[str, Any], ...]  # copies of excluded records that are no longer removed

    @property
    def num_excluded(self) -> int:
        """Records that the set leaves out now."""
        return sum(s["removed_by"].get(select.EXCLUDED, 0) for s in self.manifest["sources"].values())


@dataclass(frozen=True)
class _Job:
    """A set to write: where, the recipe with what it excludes, and what it was."""

    out: Path
    manifest: dict[str, Any]
    recipe: Recipe
    resolved: Resolved
    origin: origin.Origin


def exclude(
    out: Path,
    entries: Sequence[Excluded],
    cache: Path | None = None,
    workers: int = 0,
    screen: Screen | None = None,
) -> list[SetWithout]:
    """Write the set in ``out`` again without the records of ``entries``, and every set from the same preparation that holds some.

    Raises RecipeError where no entry matches a record, DataError where the cache no longer knows how the sets were decided.
    """
    screen = screen or Screen(quiet=True)
    manifest = finished_manifest(out)
    built_set(out, manifest, cache)
    root = cache_of(out, cache)
    jobs = [_job(root, out, manifest, entries), *_relatives(root, out, manifest, entries)]
    if not any(any(job.resolved.sources) for job in jobs):
        first = f" The first: {jobs[0].resolved.unmatched[0]}." if jobs[0].resolved.unmatched else ""
        raise RecipeError(
            f"exclude: no entry matches a record of {out}, which stays as it is.{first} Its inputs are listed in "
            f"{out / 'manifest.json'}; `datamix trace {out} --row N` names the records of a row."
        )
    jobs = [job for job in jobs if any(job.resolved.sources)]
    context = open_context(Options(out, root, workers), screen, [job.out for job in jobs])
    try:
        made = [_decide(context, job) for job in jobs]
        return [_publish(context, root, workers, job, build) for job, build in zip(jobs, made, strict=True)]
    finally:
        context.close()


def _job(root: Path, out: Path, manifest: dict[str, Any], entries: Sequence[Excluded]) -> _Job:
    """A set with what it excludes already and what it is to exclude."""
    known = origin.load(root, manifest["key"], out)
    places = input_places(out, manifest, root).recipe
    value = places.with_places()
    before = tuple(Excluded.model_validate(entry) for entry in value.get("exclude", ()))
    both = [entry.model_dump() for entry in union(before, entries)]
    recipe = Recipe.model_validate(value | {"exclude": both}).at(places.base)
    files = [ListedFile(e["source"], e["path"], e["sha256"], e["records"]) for e in manifest["inputs"]]
    added = Recipe.model_validate(value | {"exclude": [entry.model_dump() for entry in entries]})
    names = [source.name for source in known.select.sources]
    return _Job(out, manifest, recipe, resolve(added, names, files), known)


def _relatives(root: Path, out: Path, manifest: dict[str, Any], entries: Sequence[Excluded]) -> list[_Job]:
    """The other sets that the cache knows from the same preparation, in the folders that hold them."""
    prepared = _prepared_keys(origin.load(root, manifest["key"], out))
    jobs: list[_Job] = []
    seen = {out.resolve()}
    for key, built in all_sets(root).items():
        for folder in folders_of(root, key, built.out) if origin.is_known(root, key) else ():
            if folder.resolve() in seen or not prepared & _prepared_keys(origin.load(root, key, folder)):
                continue
            seen.add(folder.resolve())
            theirs = finished_manifest(folder)
            jobs.append(_job(root, folder, theirs, _as_listed(entries, manifest, theirs)))
    return jobs


def _prepared_keys(known: origin.Origin) -> set[str]:
    return {part.folder.name for source in known.select.sources for part in source.parts}


def _as_listed(
    entries: Sequence[Excluded], mine: dict[str, Any], theirs: dict[str, Any]
) -> tuple[Excluded, ...]:
    """The entries in the words of another set: files of the same content may have other paths and sources there."""
    digests: dict[str, list[tuple[str, str]]] = {}
    for file in mine["inputs"]:
        digests.setdefault(file["path"], []).append((file["source"], file["sha256"]))
    places: dict[str, list[tuple[str, str]]] = {}
    for file in theirs["inputs"]:
        places.setdefault(file["sha256"], []).append((file["source"], file["path"]))
    listed = [entry for entry in entries if entry.file is None]
    for entry in entries:
        of = [d for source, d in digests.get(entry.file or "", ()) if entry.source in (None, source)]
        for source, path in (place for digest in of for place in places.get(digest, ())):
            record = {} if entry.record is None else {"source": source, "record": entry.record}
            listed.append(Excluded.model_validate({"file": path, **record}))
    return union(listed, ())


def _decide(context: BuildContext, job: _Job) -> ResolvedBuild:
    """The set decided anew, without what is excluded."""
    recipe, spec = job.recipe, job.origin.select
    tokenizer = find_tokenizer(str((job.out / "tokenizer").absolute()), ".")
    if tokenizer.sha256 != job.manifest["tokenizer"]["sha256"]:
        raise DataError(
            f"{job.out / 'tokenizer'} is not the tokenizer that the set was built with. Build the set again with `exclude` in its recipe."
        )
    needed = [*(r.source for r in spec.against), *spec.evals]
    if not all(path.exists() for s in needed for path in (*(p.records for p in s.parts), *s.signatures)):
        raise DataError(
            f"The cache no longer holds what {job.out} was compared with (dedupe.against, decontaminate). Build the set again "
            "(nothing of it changes), then this command."
        )
    records = [entry["records"] for entry in job.manifest["inputs"]]
    sources = [_prepared(context, job, source, records) for source in spec.sources]
    spec = replace(spec, sources=tuple(s.shards for s in sources))
    decided = decide_and_pack(recipe, context, translate.encode_spec(recipe, tokenizer), sources, spec)
    order = mix_rows(recipe, context, decided, job.origin.scale)
    return ResolvedBuild(recipe, tokenizer, decided, order, job.origin.scale)


def _prepared(
    context: BuildContext, job: _Job, source: SourceShards, records: Sequence[int]
) -> PreparedSource:
    """A prepared source as the build had it, from the cache alone; its signatures are made again where they were pruned."""

    def found(folders: Sequence[Path]) -> tuple[Receipt, ...]:
        receipts = [Store(folder.parent.parent).find(folder.name) for folder in folders]
        if None in receipts:
            raise DataError(
                f"The cache no longer holds the records of {job.out}. Build the set again (nothing of it changes), then this command."
            )
        return tuple(r for r in receipts if r is not None)

    prepared = found([part.folder for part in source.parts])
    if not all(path.exists() for path in source.signatures):
        spec = translate.signing_spec(job.recipe)
        windows = prepare.windows(prepared)
        tasks = encode_pass.sign_tasks(source.name, windows, source.kind, spec, context.home) if spec else []
        signed = tuple(r.folder / "signatures.arrow" for r in context.run("sign", tasks))
        source = replace(source, signatures=signed)
    encoded = found([shard.tokens.parent for shard in source.shards])
    fitted = found([shard.fitted.parent for shard in source.shards if shard.fitted is not None])
    at = [number for number, file in enumerate(job.origin.inputs) if file.source == source.name]
    files, counts = tuple(job.origin.inputs[n] for n in at), tuple(records[n] for n in at)
    return PreparedSource(source.name, files, source.kind, prepared, encoded, fitted, source, counts)


def _publish(context: BuildContext, root: Path, workers: int, job: _Job, made: ResolvedBuild) -> SetWithout:
    """Write one set in place of what it was, its exports too."""
    returned = _returned(job, made)
    exports = further_formats(job.manifest)
    options = Options(job.out, root, workers, job.manifest["sample"], overwrite=True, exports=exports)
    with hold(job.out, job.recipe, options, context.screen) as held:
        manifest = finish(made, options, replace(context, held=held))
    return SetWithout(job.out, manifest, job.manifest["packing"]["rows"], returned)


def _returned(job: _Job, made: ResolvedBuild) -> tuple[dict[str, Any], ...]:
    """Records that were removed as copies of what is excluded now, and are so no longer."""
    names = [source.name for source in made.decided.sources]
    inputs = job.manifest["inputs"]
    excluded = dict(entry for source in job.resolved.sources for entry in source)
    returned: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        path = job.out / "removed" / f"{name}.parquet"
        if not path.is_file():
            continue
        table = pq.read_table(path, columns=["file", "record", "reason", "kept_file", "kept_record"])
        copies = [
            row
            for row in table.to_pylist()
            if row["reason"] in _COPIES
            and row["kept_file"] in excluded
            and (
                excluded[row["kept_file"]] is None or row["kept_record"] in (excluded[row["kept_file"]] or ())
            )
        ]
        fates = open_batch(made.decided.fates.folder / f"fates-{number}.arrow")
        file, record, fate = (fates.column(c).to_numpy() for c in ("file", "record", "fate"))
        for row in copies:
            at = (file == row["file"]) & (record == row["record"])
            if np.any(fate[at] > select.REMOVED):
                returned.append(
                    {"source": name, "file": inputs[row["file"]]["path"], "record": row["record"]}
                )
    return tuple(returned)


def summary(sets: Sequence[SetWithout], by: str, cache: Path, had: bool) -> str:
    """What the command prints; ``by`` is the file as it was named, ``had``: the recipe excludes other records already."""
    lines = [
        f"{one.out}: {one.num_excluded:,} records excluded, {one.rows_before:,} -> {one.manifest['packing']['rows']:,} rows"
        for one in sets
    ]
    returned = {json.dumps(record, ensure_ascii=False): None for one in sets for record in one.returned}
    if returned:
        lines.append(
            f"Records that had been removed as copies of excluded ones and are no longer: {len(returned):,}. To leave them out too, "
            f"add to {by} and run this again:"
        )
        lines += [f"  {text}" for text in list(returned)[:20]]
        lines += [f"  ... and {len(returned) - 20:,} more" if len(returned) > 20 else ""][
            : len(returned) > 20
        ]
    if had:
        lines.append(f"To keep it so, add the lines of {by} to what `exclude` of the recipe names already.")
    else:
        lines.append(
            f"To keep it so, add to the recipe (the path starts from its folder):\nexclude: {{path: {json.dumps(by, ensure_ascii=False)}}}"
        )
    lines.append(
        f"The cache {cache} still holds the texts, as do checkpoints and copies elsewhere; deleting it costs time only."
    )
    return "\n".join(lines)
