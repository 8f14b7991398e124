"""A ladder of mixtures from one preparation: each rung is a virtual set, only a schedule of about ten bytes a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamix import mix
from datamix.core.errors import RecipeError
from datamix.pipeline import prepare_sources, translate
from datamix.pipeline.out_folder import check_out, whole_set
from datamix.pipeline.preflight import preflight
from datamix.pipeline.prepare_sources import BuildContext
from datamix.pipeline.progress import Screen
from datamix.pipeline.publish import hold, publish, remember, set_key
from datamix.pipeline.state import Options, ResolvedBuild
from datamix.pipeline.steps import decide_and_pack, mix_rows, open_context
from datamix.recipe import Recipe
from datamix.reporting import render_report


def parse_vary(text: str) -> tuple[str, tuple[float, ...]]:
    """``general=0,0.05,0.25`` -> the name and its shares. Raises RecipeError."""
    name, equals, values = text.partition("=")
    try:
        shares = tuple(float(value) for value in values.split(","))
    except ValueError:
        shares = ()
    if not equals or not name.strip() or not shares or not all(0 <= share <= 1 for share in shares):
        raise RecipeError(
            f"--vary {text}: should be a source or group and its shares, such as general=0,0.05,0.25."
        )
    return name.strip(), shares


def sweep(
    recipe: Recipe, vary: str, options: Options, scale: float = 1.0, screen: Screen | None = None
) -> dict[Path, dict[str, Any]]:
    """Build one virtual set for each share of ``vary``; return their manifests by folder.

    ``options.out`` names the folders: ``OUT-general-0.05``. ``scale``: every source and the size shrunk alike, so that a small
    run sees each record as often as the large one. Raises RecipeError where a rung cannot be mixed.
    """
    name, shares = parse_vary(vary)
    members = [n for n, s in recipe.sources.items() if name in (n, s.group)]
    if not members:
        raise RecipeError(
            f"--vary {name}: no source or group has this name; there are {', '.join([*recipe.sources, *recipe.groups])}."
        )
    if recipe.mix.stages or recipe.mix.replay:
        raise RecipeError(
            "--vary: the recipe has stages or replay of its own. Take them out: a sweep varies one whole mixture."
        )
    outs = {share: options.out.with_name(f"{options.out.name}-{name}-{share:g}") for share in shares}
    for out in outs.values():  # whether another recipe built a set is known when the weights are
        check_out(out, options.cache, recipe.model_copy(update={"write": ()}), overwrite=True)
    context = open_context(options, screen or Screen(quiet=True), list(outs.values()))
    try:
        tokenizer = preflight(recipe)
        encode = translate.encode_spec(recipe, tokenizer)
        works = translate.source_works(recipe, encode, options.sample)
        decided = decide_and_pack(recipe, context, encode, prepare_sources.prepare_sources(context, works))
        there = translate.available(recipe, decided.packed[: len(recipe.sources)], scale)
        weights = translate.weights(recipe, there)
        rungs: dict[Path, ResolvedBuild] = {}
        for share, out in outs.items():  # all are mixed and checked before any is published
            rung = _rung(
                recipe, mix.vary(list(recipe.sources), weights, members, share), f"{name}-{share:g}", scale
            )
            check_out(out, options.cache, rung, options.overwrite)
            try:
                rungs[out] = ResolvedBuild(rung, tokenizer, decided, mix_rows(rung, context, decided, scale))
            except RecipeError as error:
                advice = f"Or leave {share:g} out of the ladder."
                raise RecipeError(f"--vary {name}={share:g}: {error} {advice}") from None
        return {out: _publish(made, replace(options, out=out), context) for out, made in rungs.items()}
    finally:
        context.engine.close()


def _rung(recipe: Recipe, weights: Sequence[float], suffix: str, scale: float) -> Recipe:
    """The recipe with its weights said out, and nothing written."""
    stage = {"name": "main", "share": 1.0, "weights": dict(zip(recipe.sources, weights, strict=True))}
    said = recipe.resolved()
    size = recipe.mix.size
    scaled = max(1, round(size * scale)) if isinstance(size, int) else said["mix"]["size"]
    said |= {"name": f"{recipe.name}-{suffix}", "write": []}
    said["mix"] |= {"stages": [stage], "weights": None, "size": scaled}
    rung = Recipe.model_validate(said)
    rung._base = recipe.base
    return rung


def _publish(made: ResolvedBuild, options: Options, context: BuildContext) -> dict[str, Any]:
    with hold(options.out, made.recipe, options, context.screen):
        done = whole_set(options.out, set_key(made), options.cache, options.overwrite)
        if done is not None:
            remember(made, options)
        return done or publish(made, options, context, render_report)
