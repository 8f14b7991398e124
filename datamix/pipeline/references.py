"""What records are compared with beside each other: earlier files and sets for dedupe, evaluation files for decontamination."""

from __future__ import annotations

from pathlib import Path

from datamix.core.errors import RecipeError, mask_url
from datamix.core.hashing import digest
from datamix.pipeline import built_sets, prepare, prepare_sources, sign, translate
from datamix.pipeline.opening import read_manifest
from datamix.pipeline.prepare_sources import BuildContext, SourceWork
from datamix.pipeline.rows import RowSet
from datamix.pipeline.scan import SourceRequest
from datamix.pipeline.select import Reference
from datamix.pipeline.shards import SourceShards
from datamix.pipeline.store import Store
from datamix.recipe import Recipe


def evals(recipe: Recipe, context: BuildContext) -> tuple[SourceShards, ...]:
    """The evaluation files, as what they natively are."""
    asked = recipe.decontaminate.against if recipe.decontaminate else ()
    request = [
        SourceRequest(
            ", ".join(map(mask_url, e.path)),
            e.path,
            recipe.base,
            e.format,
            None,
            tuple(sorted(e.columns.items())),
        )
        for e in asked
    ]
    return tuple(
        r.shards for r in prepare_sources.prepare_sources(context, [SourceWork(w, "native") for w in request])
    )


def against(recipe: Recipe, context: BuildContext) -> tuple[Reference, ...]:
    """``dedupe.against``: files are read and signed; of a set that datamix built, the records it trains on."""
    found: list[Reference] = []
    for path in recipe.dedupe.against if recipe.dedupe else ():
        manifest = read_manifest(Path(recipe.base, path)) if "://" not in path else None
        if manifest is not None and "recipe_sha256" in manifest:
            found += _earlier_set(recipe, context, path, manifest.get("key", ""))
        else:
            request = SourceRequest(mask_url(path), (path,), recipe.base)
            work = SourceWork(request, recipe.kind, dedupe=translate.signing_spec(recipe))
            found += [Reference(r.shards) for r in prepare_sources.prepare_sources(context, [work])]
    return tuple(found)


def _earlier_set(recipe: Recipe, context: BuildContext, path: str, key: str) -> list[Reference]:
    """The sources of an earlier set, signed as this recipe asks; its records lie in the cache that built it."""
    held = built_sets.load(context.home.parent, key) or built_sets.load(
        Path(recipe.base, path).absolute().parent / ".datamix", key
    )
    if held is None:
        raise RecipeError(
            f"dedupe.against: the records of the set {path} are no longer in the cache that built it. Build it again (nothing "
            "of it changes), or name its input files instead."
        )
    train = held.splits["train"]
    return [_reference(recipe, context, path, train, number) for number in range(len(train.sources))]


def _reference(recipe: Recipe, context: BuildContext, path: str, train: RowSet, number: int) -> Reference:
    rows = train.sources[number]
    if rows.source.kind != ("text" if recipe.kind == "pretrain" else recipe.kind):
        raise RecipeError(
            f"dedupe.against: the set {path} holds {rows.source.kind} records, which cannot be compared with those of a "
            f"{recipe.kind} recipe. Name a set or files of the same kind."
        )
    spec = translate.signing_spec(recipe)
    receipts = [Store(part.folder.parent.parent).find(part.folder.name) for part in rows.source.parts]
    windows = prepare.windows([r for r in receipts if r is not None])
    tasks = sign.tasks(path, windows, rows.source.kind, spec, context.home) if spec else []
    signed = context.run("sign", tasks)
    source = SourceShards(
        f"{path}:{rows.source.name}",
        rows.source.kind,
        digest("earlier", rows.source.key, train.order and train.order.parent.name, [r.key for r in signed]),
        rows.source.parts,
        signatures=tuple(r.folder / "signatures.arrow" for r in signed),
    )
    return Reference(source, train.order, rows.bins, number)
