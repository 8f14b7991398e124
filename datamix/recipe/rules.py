"""What one key of a recipe alone cannot show: names that must exist, options that must fit the kind."""

from __future__ import annotations

from typing import Any

from datamix.recipe.model import Recipe
from datamix.recipe.parts import HELD_OUT, Epochs, Weighed
from datamix.recipe.strict_yaml import Key


def broken_rules(recipe: Recipe) -> list[tuple[Key, str]]:
    """Each broken rule with the key it is about, in words."""
    found: list[tuple[Key, str]] = []
    known = set(recipe.sources) | set(recipe.groups)
    if recipe.validation and recipe.validation.path and HELD_OUT in recipe.sources:
        found.append((("sources", HELD_OUT), "is the name that validation.path takes; rename this source"))
    for name, source in recipe.sources.items():
        if source.group is not None and source.group not in recipe.groups:
            found.append(
                (
                    ("sources", name, "group"),
                    f"no group is called {source.group!r}; groups: {_list(recipe.groups)}",
                )
            )
        if name in recipe.groups:
            found.append((("groups", name), f"{name!r} names both a source and a group; rename one"))
    for group in recipe.groups:
        if not any(s.group == group for s in recipe.sources.values()):
            found.append(
                (
                    ("groups", group),
                    f"no source belongs to the group {group!r}; set `group: {group}` on one",
                )
            )
    wanted: list[tuple[Key, str]] = [
        (("dedupe", "prefer", i), n) for i, n in enumerate(recipe.dedupe.prefer if recipe.dedupe else ())
    ]
    wanted += [
        (("mix", "stages", i, "weights", n), n)
        for i, s in enumerate(recipe.mix.stages)
        for n in s.weights or ()
    ]
    wanted += [(("mix", "replay", "of"), recipe.mix.replay.of)] if recipe.mix.replay else []
    wanted += [(("clean", i, "sources"), n) for i, s in enumerate(recipe.clean) for n in s.sources]
    if isinstance(recipe.mix.size, Epochs):
        wanted += [(("mix", "size", "epochs", n), n) for n in recipe.mix.size.epochs]
    found += [
        (k, f"no source or group is called {n!r}; there are: {_list(known)}")
        for k, n in wanted
        if n not in known
    ]
    return found + _never_weighed(recipe) + _kind_rules(recipe)


def _never_weighed(recipe: Recipe) -> list[tuple[Key, str]]:
    """Sources that no stage gives a weight, where every stage names its weights."""
    stages = recipe.mix.stages
    if not stages or any(s.weights is None for s in stages):
        return []
    named = {name for s in stages for name, weight in (s.weights or {}).items() if weight > 0}
    never = [n for n, source in recipe.sources.items() if n not in named and source.group not in named]
    return [
        (("mix", "stages"), f"no stage weighs {n!r}; give it a weight in one stage, or take it out")
        for n in never
    ]


def _kind_rules(recipe: Recipe) -> list[tuple[Key, str]]:
    found: list[tuple[Key, str]] = []
    allowed = {
        "pretrain": ("split", "drop"),
        "sft": ("drop_turns", "truncate", "drop"),
        "preference": ("truncate_prompt", "drop"),
        "prompt": ("drop",),
    }[recipe.kind]
    if recipe.encode.overlong not in allowed:
        found.append(
            (
                ("encode", "overlong"),
                f"is {recipe.encode.overlong!r}; a {recipe.kind} recipe takes {' or '.join(allowed)}",
            )
        )
    if recipe.encode.max_length is None and recipe.kind != "prompt":
        found.append(
            (
                ("encode", "max_length"),
                f"is missing; a {recipe.kind} recipe needs it (tokens), such as 2048",
            )
        )
    if recipe.encode.pack != "none" and recipe.kind in ("preference", "prompt"):
        found.append(
            (
                ("encode", "pack"),
                f"is {recipe.encode.pack!r}; {recipe.kind} rows are never packed: leave it out",
            )
        )
    if recipe.encode.pack == "concat" and recipe.kind == "sft":
        found.append(
            (("encode", "pack"), "is 'concat', which cuts conversations; sft takes none or best_fit")
        )
    if recipe.encode.fim is not None and recipe.kind != "pretrain":
        found.append(
            (("encode", "fim"), f"cuts documents; a {recipe.kind} recipe has conversations: leave it out")
        )
    if isinstance(recipe.mix.loss_norm, Weighed) and recipe.kind in ("preference", "prompt"):
        found.append(
            (("mix", "loss_norm"), f"weighs rows by their labels; {recipe.kind} rows have none: leave it out")
        )
    if recipe.mix.replay and (recipe.mix.stages or recipe.mix.weights):
        found.append((("mix", "replay"), "stands instead of weights and stages; keep one of them"))
    return found


def _list(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"
