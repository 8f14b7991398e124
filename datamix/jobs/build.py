"""The main job: a recipe in, a training set out. The order of the phases is here and nowhere else. And ``sweep``: a ladder of mixtures.

``prepare_sources`` (per record, cached by content) -> ``decide_and_pack`` (fates, bins) -> ``mix_rows`` (the order) -> ``publish``
(the rows and the folder OUT, manifest last). Every step is a task with a key, so a build that was stopped resumes, and one that
changes only weights does only integers and the last copy. A sweep prepares once; each of its mixtures is a virtual set, only a
schedule of about ten bytes a row.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix import mix
from datamix.core.errors import RecipeError
from datamix.core.machine import failures_at
from datamix.pipeline import prepare_sources, translate
from datamix.pipeline.engine import default_workers
from datamix.pipeline.out_folder import check_out, whole_set
from datamix.pipeline.planning import report_scarcity, report_scarcity_first
from datamix.pipeline.prepare_sources import BuildContext
from datamix.pipeline.progress import Screen
from datamix.pipeline.publish import hold, publish, remember, set_key
from datamix.pipeline.steps import Options, ResolvedBuild, decide_and_pack, mix_rows, open_context, preflight
from datamix.pipeline.time_left import PHASES, usual_seconds
from datamix.pipeline.tokenizer_cache import cached_tokenizer
from datamix.recipe import Recipe
from datamix.reporting import render_card, render_report
from datamix.tokenize.tokenizer import slow_engine_notice, whole_texts_notice

_UNPACKED = 4.0  # bytes of text in a compressed byte, for the time that is left


def build(recipe: Recipe, options: Options, screen: Screen | None = None) -> dict[str, Any]:
    """Build a training set; return its manifest. Raises DatamixError with what to do."""
    screen = screen or Screen(quiet=True)
    if options.engine != "local":  # other machines have other working directories
        options = replace(options, out=options.out.absolute(), cache=options.cache.absolute())
        recipe = recipe.at(os.path.abspath(recipe.base))
    tokenizer = preflight(recipe, options.cache)
    num_workers = options.workers or default_workers()
    with (
        hold(options.out, recipe, options, screen) as held,
        screen.whole_build(phase_titles(recipe), num_workers),
    ):
        context = replace(open_context(options, screen), held=held)
        try:
            tokenizer = cached_tokenizer(context, tokenizer)
            encode = translate.encode_spec(recipe, tokenizer)
            works = translate.source_works(recipe, encode, options.sample)
            files = prepare_sources.scan_sources(context, works)
            text_bytes = sum(
                f.num_bytes * (_UNPACKED if f.compression else 1) for group in files for f in group
            )
            screen.expect(
                usual_seconds(text_bytes, phase_titles(recipe), num_workers, max(1, len(recipe.write)))
            )
            prepare_sources.preload_tokenizer(context, works, files)
            reported = report_scarcity_first(recipe, context, encode, works, files)
            if notice := slow_engine_notice():
                screen.say(notice)
            prepared = prepare_sources.prepare_sources(context, works, files)
            engines = {receipt.counts["engine"] for source in prepared for receipt in source.encoded}
            if notice := slow_engine_notice(engines):
                screen.say(notice)
            num_whole = sum(r.counts.get("whole", 0) for source in prepared for r in source.encoded)
            if notice := whole_texts_notice(recipe.tokenizer, num_whole):
                screen.say(notice)
            decided = decide_and_pack(recipe, context, encode, prepared)
            resolved = ResolvedBuild(recipe, tokenizer, decided, mix_rows(recipe, context, decided))
            if not reported:
                report_scarcity(resolved.arranged.quota, screen)
            return finish(
                resolved,
                options,
                context,
                f"{options.out} is already built from this recipe and these inputs: nothing to do.",
            )
        finally:
            context.close()


def phase_titles(recipe: Recipe) -> list[str]:
    """The phases of a build of this recipe, in order."""
    is_there = {
        "lines": recipe.dedupe is not None and recipe.dedupe.lines is not None,
        "sign": translate.signing_spec(recipe) is not None,
        "truncate": recipe.encode.max_length is not None and recipe.overlong != "split",
    }
    return [title for title in PHASES if is_there.get(title, True)]


def _render_pages(
    out: Path, manifest: dict[str, Any], costs: NDArray[np.int64]
) -> list[tuple[str, str, str]]:
    """The pages of a set: name, format and text."""
    report = render_report(out, manifest, costs)
    return [("report.html", "report", report), ("README.md", "card", render_card(manifest))]


def finish(
    resolved: ResolvedBuild, options: Options, context: BuildContext, if_done: str = ""
) -> dict[str, Any]:
    """The manifest of the set in OUT: published now, unless the same set is there already."""
    context.name([set_key(resolved)])
    done = whole_set(options.out, set_key(resolved), options.cache, options.overwrite)
    if done is None:
        with (
            failures_at(options.cache, "noting the set", "name another place with --cache"),
            failures_at(options.out, "writing the set", "choose another folder with -o"),
        ):
            return publish(resolved, options, context, _render_pages)
    if if_done:
        context.screen.say(if_done)
    remember(resolved, options)
    return done


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
        names = ", ".join([*recipe.sources, *recipe.groups])
        raise RecipeError(f"--vary {name}: no source or group has this name; there are {names}.")
    if recipe.mix.stages or recipe.mix.replay:
        raise RecipeError(
            "--vary: the recipe has stages or replay. Remove them: a sweep varies one whole mixture."
        )
    outs = {share: options.out.with_name(f"{options.out.name}-{name}-{share:g}") for share in shares}
    for out in outs.values():  # whether another recipe built a set is known when the weights are
        check_out(out, options.cache, recipe.model_copy(update={"write": ()}), overwrite=True)
    context = open_context(options, screen or Screen(quiet=True), list(outs.values()))
    try:
        tokenizer = cached_tokenizer(context, preflight(recipe, options.cache))
        encode = translate.encode_spec(recipe, tokenizer)
        works = translate.source_works(recipe, encode, options.sample)
        decided = decide_and_pack(recipe, context, encode, prepare_sources.prepare_sources(context, works))
        packed = decided.packed[: len(recipe.sources)]
        weights = translate.weights(recipe, translate.available(recipe, packed, scale))
        rungs: dict[Path, ResolvedBuild] = {}
        for share, out in outs.items():  # all are mixed and checked before any is published
            varied = mix.vary(list(recipe.sources), weights, members, share)
            rung = with_weights(
                recipe, dict(zip(recipe.sources, varied, strict=True)), f"{name}-{share:g}", scale
            )
            check_out(out, options.cache, rung, options.overwrite)
            try:
                order = mix_rows(rung, context, decided, scale)
                rungs[out] = ResolvedBuild(rung, tokenizer, decided, order, scale)
            except RecipeError as error:
                advice = f"Or leave {share:g} out of the ladder."
                raise RecipeError(f"--vary {name}={share:g}: {error} {advice}") from None
        manifests = {}
        for out, rung_build in rungs.items():
            with hold(out, rung_build.recipe, replace(options, out=out), context.screen):
                manifests[out] = finish(rung_build, replace(options, out=out), context)
        return manifests
    finally:
        context.close()


def with_weights(recipe: Recipe, weights: dict[str, float], suffix: str, scale: float) -> Recipe:
    """The recipe with its weights written out, as a virtual set."""
    value = recipe.resolved()
    stage = {"name": "main", "share": 1.0, "weights": weights}
    size = recipe.mix.size
    scaled = max(1, round(size * scale)) if isinstance(size, int) else value["mix"]["size"]
    value |= {"name": f"{recipe.name}-{suffix}", "write": []}
    value["mix"] |= {"stages": [stage], "weights": None, "size": scaled}
    rung = Recipe.model_validate(value)
    rung._base = recipe.base
    return rung
