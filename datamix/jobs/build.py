"""The main job: a recipe in, a training set out. The order of the phases stands here and nowhere else.

``ready`` (per record, cached by content) -> ``decide`` (fates) -> ``pack`` and ``schedule`` (integers) -> ``emit`` (rows)
-> ``publish`` (the folder OUT, manifest last). Every step is a task with a key, so a build that was stopped goes on where
it was, and one that changes only weights does only integers and the last copy.
"""

from __future__ import annotations

from typing import Any

from datamix.pipeline import prepare_sources, translate
from datamix.pipeline.out_folder import whole_set
from datamix.pipeline.planning import report_scarcity, report_scarcity_first
from datamix.pipeline.preflight import preflight
from datamix.pipeline.progress import Screen
from datamix.pipeline.publish import hold, publish, remember, set_key
from datamix.pipeline.state import Options, ResolvedBuild
from datamix.pipeline.steps import decide_and_pack, mix_rows, open_context
from datamix.recipe import Recipe
from datamix.reporting import render_report
from datamix.tokenize.tokenizer import slow_engine_notice


def build(recipe: Recipe, options: Options, screen: Screen | None = None) -> dict[str, Any]:
    """Build a training set; return its manifest. Raises DatamixError with what to do."""
    screen = screen or Screen(quiet=True)
    tokenizer = preflight(recipe)
    with hold(options.out, recipe, options, screen):
        context = open_context(options, screen)
        try:
            encode = translate.encode_spec(recipe, tokenizer)
            works = translate.source_works(recipe, encode, options.sample)
            found = prepare_sources.scan_sources(context, works)
            prepare_sources.preload_tokenizer(context, works, found)
            said = report_scarcity_first(recipe, context, encode, works, found)
            _say_if(slow_engine_notice(), screen)
            prepared = prepare_sources.prepare_sources(context, works, found)
            engines = {receipt.counts["engine"] for source in prepared for receipt in source.encoded}
            _say_if(slow_engine_notice(engines), screen)
            decided = decide_and_pack(recipe, context, encode, prepared)
            made = ResolvedBuild(recipe, tokenizer, decided, mix_rows(recipe, context, decided))
            if not said:
                report_scarcity(made.arranged.quota, screen)
            done = whole_set(options.out, set_key(made), options.cache, options.overwrite)
            if done is not None:
                screen.say(
                    f"{options.out} is already built from this recipe and these inputs: nothing to do."
                )
                remember(made, options)
                return done
            return publish(made, options, context, render_report)
        finally:
            context.engine.close()


def _say_if(notice: str | None, screen: Screen) -> None:
    if notice:
        screen.say(notice)
