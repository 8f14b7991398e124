"""Every recipe error that can be known before work starts, told at once, each with its key and line."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from datamix.core.errors import DatamixError, RecipeError
from datamix.exporters import SetInfo, open_sink
from datamix.pipeline.translate import cleaning_steps, step_options
from datamix.read import find
from datamix.recipe.model import Recipe
from datamix.recipe.strict_yaml import Key
from datamix.tokenize import TokenizerFiles, find_tokenizer


def preflight(recipe: Recipe) -> TokenizerFiles:
    """Look for every file, step, format and option that the recipe names; return its tokenizer. Raises RecipeError."""
    info = _info(recipe)
    checks: list[tuple[Key, Callable[[], Any]]] = [
        (key, partial(find, (path,), recipe.base)) for key, path in _paths(recipe) if "://" not in path
    ]
    checks += [(("clean", i, s.name), partial(step_options, s)) for i, s in enumerate(recipe.clean)]
    for number, wanted in enumerate(recipe.write):
        options = tuple(sorted(wanted.options.items()))
        checks.append((("write", number), partial(open_sink, wanted.name, options, info, "train")))
    problems: list[tuple[Key, str]] = []
    for key, check in checks:
        try:
            check()
        except DatamixError as error:
            problems.append((key, str(error)))
    if not any(key[0] == "clean" for key, _ in problems):
        cleaning_steps(recipe, next(iter(recipe.sources)))  # what steps need to be installed
    tokenizer: TokenizerFiles | None = None
    try:
        tokenizer = find_tokenizer(recipe.tokenizer, recipe.base, recipe.chat_template)
    except DatamixError as error:
        problems.append((("tokenizer",), str(error).removeprefix("tokenizer: ")))
    if tokenizer is None or problems:
        raise RecipeError(recipe.format_problems(problems))
    return tokenizer


def _paths(recipe: Recipe) -> list[tuple[Key, str]]:
    """Every input path of the recipe, with its key."""
    named: list[tuple[Key, str]] = []
    named += [(("sources", name, "path"), p) for name, source in recipe.sources.items() for p in source.path]
    named += [(("dedupe", "against"), p) for p in (recipe.dedupe.against if recipe.dedupe else ())]
    for number, wanted in enumerate(recipe.decontaminate.against if recipe.decontaminate else ()):
        named += [(("decontaminate", "against", number, "path"), p) for p in wanted.path]
    named += [(("validation", "path"), p) for p in (recipe.validation.path if recipe.validation else ())]
    return named


def _info(recipe: Recipe) -> SetInfo:
    """What is known of the set before it is built: enough to check options."""
    return SetInfo(
        name=recipe.name,
        kind=recipe.kind,
        packed=recipe.encode.pack == "best_fit",
        max_length=recipe.encode.max_length,
        vocab_size=1,
        eos_token_id=0,
        pad_token_id=0,
        sources=tuple(recipe.sources),
        stages=tuple(s.name for s in recipe.mix.stages) or ("main",),
        tokenizer_folder="tokenizer",
        shares=tuple((name, 1.0) for name in recipe.sources),
        meta=any(s.keep_meta for s in recipe.sources.values()),
    )
