"""Sources that are cut by a score: each bucket becomes a source, before anything else reads the recipe.

``web: {path: ..., weight: 0.7, buckets: {score: edu, quantiles: [0.5, 0.9]}}`` becomes ``web-1``, ``web-2`` and ``web-3`` in the group ``web``
of weight 0.7. They have the same files, so that these are read, cleaned and encoded once; only which records each holds is
different. What refers to ``web`` refers to the group.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from datamix.recipe.parts import Buckets, CleanStep, Dedupe, RankScore, Source
from datamix.recipe.strict_yaml import Key


def expand_buckets(value: dict[str, Any]) -> dict[str, Any]:
    """A recipe with every source that has ``buckets`` replaced by its buckets; what is not valid stays as it is, to be reported.

    Raises ValueError where the buckets' names or weights collide with something else.
    """
    sources = value.get("sources")
    if not isinstance(sources, dict) or not any(
        isinstance(s, dict) and s.get("buckets") for s in sources.values()
    ):
        return value
    groups = dict(value.get("groups") or {})
    expanded: dict[str, Any] = {}
    for name, source in sources.items():
        try:
            buckets = Buckets.model_validate(source["buckets"])
        except (ValidationError, KeyError, TypeError):
            expanded[name] = source
            continue
        weights = _weights(name, source, buckets, groups)
        members = {f"{name}-{n}": weight for n, weight in enumerate(weights, 1)}
        taken = [member for member in members if member in sources or member in groups]
        if taken or (name in groups and source.get("group") != name):
            raise ValueError(
                f"sources.{name}.buckets makes the sources {', '.join(members)} in the group {name}, and "
                f"{taken[0] if taken else name} is the name of something else; rename it"
            )
        rest = {key: item for key, item in source.items() if key not in ("buckets", "weight")}
        if source.get("group") is None and source.get("weight") is not None:
            within = "weights" if buckets.weights else "proportional"
            groups[name] = {"weight": source["weight"], "within": within}
            rest["group"] = name
        for number, (member, weight) in enumerate(members.items(), 1):
            facts = {
                "of": name,
                "score": buckets.score,
                "quantiles": list(buckets.quantiles),
                "number": number,
            }
            expanded[member] = {**rest, "bucket": facts, **({} if weight is None else {"weight": weight})}
    return {**value, "sources": expanded, **({"groups": groups} if groups else {})}


def _weights(
    name: str, source: Mapping[str, Any], buckets: Buckets, groups: Mapping[str, Any]
) -> list[float | None]:
    """The weight of each bucket within its group, or in the whole where it has none."""
    none: list[float | None] = [None] * (len(buckets.quantiles) + 1)
    group = source.get("group")
    if group is None:
        return list(buckets.weights) if buckets.weights else none
    within = groups.get(group, {}).get("within") if isinstance(groups.get(group), dict) else None
    if within != "weights" or not isinstance(source.get("weight"), int | float):
        if buckets.weights:
            raise ValueError(
                f"sources.{name}.buckets.weights needs a group that shares by weights; set groups.{group}.within: weights, and "
                f"sources.{name}.weight"
            )
        return none
    edges = [0.0, *buckets.quantiles, 1.0]
    parts = buckets.weights or [high - low for low, high in itertools.pairwise(edges)]
    return [float(source["weight"]) * part / sum(parts) for part in parts]


def score_problems(
    files: Sequence[str], sources: Mapping[str, Source], clean: Sequence[CleanStep], dedupe: Dedupe | None
) -> list[tuple[Key, str]]:
    """Scores that a recipe uses though it names no file of scores, by the key that names each."""
    wanted: dict[Key, str | None] = {}
    for name, source in sources.items():
        wanted |= {("sources", name, "keep", n, "score"): band.score for n, band in enumerate(source.keep)}
        wanted["sources", name, "bucket", "score"] = source.bucket.score if source.bucket else None
    for number, step in enumerate(clean):
        score = step.options.get("score") if step.name == "keep" else None
        wanted["clean", number, "keep", "score"] = score if isinstance(score, str) else None
    if dedupe is not None and isinstance(dedupe.rank, RankScore):
        wanted["dedupe", "rank", "score"] = dedupe.rank.score
    advice = "write one with `datamix score RECIPE --by ... --name"
    return [
        (key, f"no file of scores is named; {advice} {name}`, and add `scores: [scores.parquet]`")
        for key, name in wanted.items()
        if name and not files
    ]
