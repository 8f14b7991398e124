"""What records are compared with beside each other: earlier files and sets for dedupe, evaluation files for decontamination."""

from __future__ import annotations

from pathlib import Path

from datamix.core.errors import RecipeError
from datamix.core.hashing import digest
from datamix.pipeline import encode_pass, prepare, prepare_sources, translate
from datamix.pipeline.built_sets import load, read_manifest
from datamix.pipeline.prepare_sources import BuildContext, SourceWork
from datamix.pipeline.rows import RowSet
from datamix.pipeline.scan import SourceRequest
from datamix.pipeline.select import Reference
from datamix.pipeline.shards import SourceShards
from datamix.pipeline.store import Store
from datamix.read import published_path
from datamix.recipe import Recipe


def evals(recipe: Recipe, context: BuildContext) -> tuple[SourceShards, ...]:
    """The evaluation files, as what they natively are."""
    works: list[SourceWork] = []
    for e in recipe.decontaminate.against if recipe.decontaminate else ():
        name = ", ".join(map(published_path, e.path))
        request = SourceRequest(name, e.path, recipe.base, e.format, None, tuple(sorted(e.columns.items())))
        works.append(SourceWork(request, "native"))
    return tuple(source.shards for source in prepare_sources.prepare_sources(context, works))


def against(recipe: Recipe, context: BuildContext) -> tuple[Reference, ...]:
    """``dedupe.against``: files are read and signed; of a set that datamix built, the records it trains on."""
    references: list[Reference] = []
    for path in recipe.dedupe.against if recipe.dedupe else ():
        manifest = read_manifest(Path(recipe.base, path)) if "://" not in path else None
        if manifest is None or "recipe_sha256" not in manifest:
            request = SourceRequest(published_path(path), (path,), recipe.base)
            work = SourceWork(request, recipe.kind, dedupe=translate.signing_spec(recipe))
            references += [Reference(r.shards) for r in prepare_sources.prepare_sources(context, [work])]
            continue
        caches = (context.home.parent, Path(recipe.base, path).absolute().parent / ".datamix")
        built = next((b for cache in caches if (b := load(cache, manifest.get("key", "")))), None)
        if built is None:
            raise RecipeError(
                f"dedupe.against: the records of the set {path} are no longer in the cache that built it. Build it again (nothing "
                "of it changes), or name its input files instead."
            )
        train = built.splits["train"]
        references += [_signed(recipe, context, path, train, number) for number in range(len(train.sources))]
    return tuple(references)


def _signed(recipe: Recipe, context: BuildContext, path: str, train: RowSet, number: int) -> Reference:
    """A source of an earlier set, signed as this recipe asks; its records are in the cache that built it."""
    rows = train.sources[number]
    if rows.source.kind != ("text" if recipe.kind == "pretrain" else recipe.kind):
        raise RecipeError(
            f"dedupe.against: the set {path} holds {rows.source.kind} records, which cannot be compared with those of a "
            f"{recipe.kind} recipe. Name a set or files of the same kind."
        )
    spec = translate.signing_spec(recipe)
    receipts = [Store(part.folder.parent.parent).find(part.folder.name) for part in rows.source.parts]
    windows = prepare.windows([r for r in receipts if r is not None])
    tasks = encode_pass.sign_tasks(path, windows, rows.source.kind, spec, context.home) if spec else []
    signed = context.run("sign", tasks)
    key = digest("earlier", rows.source.key, train.order and train.order.parent.name, [r.key for r in signed])
    signatures = tuple(r.folder / "signatures.arrow" for r in signed)
    name = f"{published_path(path)}:{rows.source.name}"
    source = SourceShards(name, rows.source.kind, key, rows.source.parts, signatures=signatures)
    return Reference(source, train.order, rows.bins, number)
