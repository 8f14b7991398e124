"""Weights by rule: given, groups, proportional, temperature, UniMax, replay; and the ladder of a sweep.

All end in one plain weight a source (``[num_sources]``, unnormalised), in the order of ``names``. Sizes are
what each source holds, in the unit of the mixture.

Sources: temperature sampling as in XLM-R and mT5 (weight = size^(1/t)); UniMax, Chung et al. 2023, arXiv
2304.09151 (an equal share for all, but no source more than its cap; what the capped leave, the others take).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from datamix.core.errors import RecipeError
from datamix.mix.quota import fill

Weights = tuple[float, ...]
Rule = str | Mapping[str, float] | None  # proportional | unimax | {temperature: t}


@dataclass(frozen=True)
class MixGroup:
    """Sources that share one weight, inside by size or by the members' weights."""

    members: tuple[str, ...]
    weight: float | None = None
    within: Literal["proportional", "weights"] = "proportional"
    inner: Mapping[str, float] = field(default_factory=dict)  # weights of the members


def source_weights(
    names: Sequence[str],
    given: Mapping[str, float],
    groups: Mapping[str, MixGroup],
    rule: Rule,
    sizes: Sequence[float],
    caps: Sequence[float] | None = None,
    budget: float | None = None,
) -> Weights:
    """One weight a source from what the recipe gives; proportional where it gives nothing.

    ``caps`` (size x max_epochs) and ``budget`` (the total asked for; None: what is there, once) are for
    UniMax alone.

    Raises RecipeError: a source that nothing weighs, or both a rule and weights.
    """
    outer = {**given, **{name: g.weight for name, g in groups.items() if g.weight is not None}}
    if rule is not None:
        if outer:
            raise RecipeError(
                f"mix.weights: the rule {_rule_text(rule)} and weights of {', '.join(sorted(outer))} cannot "
                f"both hold; remove one of them"
            )
        if rule == "unimax":
            return unimax(sizes if caps is None else caps, math.fsum(sizes) if budget is None else budget)
        return by_rule(rule, sizes)
    if not outer:
        return by_rule("proportional", sizes)
    weights = stage_weights(names, outer, groups, sizes)
    in_weighed_group = {m for g in groups.values() if g.weight is not None for m in g.members}
    unweighed = [n for n in names if n not in outer and n not in in_weighed_group]
    if unweighed:
        of_group = [f", or give its group {n} one" for n, g in groups.items() if unweighed[0] in g.members]
        raise RecipeError(
            f"sources.{unweighed[0]}: has no weight while {', '.join(sorted(outer))} {'has one' if len(outer) == 1 else 'have one'}; give it a weight"
            f"{''.join(of_group[:1])}, or remove all weights for a proportional mixture"
        )
    return weights


def stage_weights(
    names: Sequence[str],
    weights: Mapping[str, float],
    groups: Mapping[str, MixGroup],
    sizes: Sequence[float],
) -> Weights:
    """One weight a source from weights by source or group name; what is not named is absent (0).

    Raises RecipeError: a name that is neither a source nor a group, a source named beside its group, a negative
    weight.
    """
    out = dict.fromkeys(names, 0.0)
    size = dict(zip(names, sizes, strict=True))
    for name, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise RecipeError(f"mix: the weight of {name} must be a number of at least 0, not {weight!r}")
        if name in groups:
            inner = _inside(name, groups[name], size)
            both = [m for m in inner if m in weights and m not in groups]
            if both and groups[name].within == "proportional":
                raise RecipeError(
                    f"mix: {both[0]} is weighed itself and through its group {name}; keep one of the two, or "
                    f"set groups.{name}.within: weights"
                )
            for member, part in inner.items():
                out[member] = weight * part
        elif name in out:
            if not any(name in g.members and n in weights for n, g in groups.items()):
                out[name] = weight
        else:
            known = ", ".join([*names, *groups])
            raise RecipeError(f"mix: {name} is neither a source nor a group; there are {known}")
    return tuple(out[n] for n in names)


def _inside(name: str, group: MixGroup, size: Mapping[str, float]) -> dict[str, float]:
    """How a group's weight is shared by its members; sums to 1."""
    if not group.members:
        raise RecipeError(
            f"groups.{name}: no source belongs to it; give sources `group: {name}`, or remove it"
        )
    if group.within == "proportional":
        parts = {m: size[m] for m in group.members}
    else:
        missing = [m for m in group.members if m not in group.inner]
        if missing:
            raise RecipeError(
                f"groups.{name}.within: weights needs a weight of every member, {missing[0]} has none; give "
                f"it one, or set within: proportional"
            )
        parts = {m: group.inner[m] for m in group.members}
    total = math.fsum(parts.values())
    if total <= 0:
        raise RecipeError(
            f"groups.{name}: its sources weigh nothing together; give one of them a weight above 0"
        )
    return {m: part / total for m, part in parts.items()}


def by_rule(rule: str | Mapping[str, float], sizes: Sequence[float]) -> Weights:
    """Weights from sizes alone: proportional or by temperature."""
    if rule == "proportional":
        return tuple(float(s) for s in sizes)
    if isinstance(rule, Mapping) and set(rule) == {"temperature"}:
        return temperature(sizes, rule["temperature"])
    raise RecipeError(
        f"mix.weights: there is no rule {_rule_text(rule)}; rules are proportional, unimax and "
        f"{{temperature: 2}}"
    )


def _rule_text(rule: str | Mapping[str, float]) -> str:
    return rule if isinstance(rule, str) else "{" + ", ".join(f"{k}: {v}" for k, v in rule.items()) + "}"


def temperature(sizes: Sequence[float], t: float) -> Weights:
    """``size^(1/t)``: 1 is proportional, large is equal; sizes ``[100, 1]`` at 2 -> ``10 : 1``."""
    if not (math.isfinite(t) and t > 0):
        raise RecipeError(f"mix.weights.temperature: must be above 0, not {t!r}; 1 is proportional")
    top = max(sizes)
    return tuple((s / top) ** (1.0 / t) for s in sizes)


def unimax(caps: Sequence[float], budget: float) -> Weights:
    """An equal share of ``budget`` for all, no source above its cap (size x max_epochs).

    Caps ``[10, 100, 100]`` and budget 120 -> ``10, 55, 55``.
    """
    most = np.array(caps, float)
    return tuple(float(x) for x in fill(np.ones(len(most)), most, budget))


def replay(
    names: Sequence[str],
    replay_of: str,
    share: float,
    sizes: Sequence[float],
    groups: Mapping[str, MixGroup],
) -> Weights:
    """Give ``replay_of`` (a source or a group) ``share`` of the finished mixture; the others share the rest
    by size.

    Raises RecipeError: no such source or group, a share outside (0, 1), or nothing to replay beside.
    """
    if not 0 < share < 1:
        raise RecipeError(
            f"mix.replay.share: must be between 0 and 1, not {share:g}; 0.05 is 5 % of the mixture"
        )
    if replay_of not in groups and replay_of not in names:
        known = ", ".join([*names, *groups])
        raise RecipeError(f"mix.replay.of: {replay_of} is neither a source nor a group; there are {known}")
    size = dict(zip(names, sizes, strict=True))
    inner = _inside(replay_of, groups[replay_of], size) if replay_of in groups else {replay_of: 1.0}
    rest = math.fsum(size[n] for n in names if n not in inner)
    if rest <= 0:
        raise RecipeError(
            f"mix.replay.of: {replay_of} is all there is; name the part that is replayed beside the new data"
        )
    return tuple(share * inner[n] if n in inner else (1 - share) * size[n] / rest for n in names)


def vary(names: Sequence[str], weights: Weights, members: Sequence[str], share: float) -> Weights:
    """The mixture with ``members`` at ``share`` together; inside and outside them proportions stay.

    Weights 7 : 3 with the first at 0.5 -> 0.5, 0.5. A step of ``datamix sweep``.
    """
    if not 0 <= share <= 1:
        raise RecipeError(f"--vary: a share must be between 0 and 1, not {share:g}")
    inside = [n in members for n in names]
    held = math.fsum(w for w, i in zip(weights, inside, strict=True) if i)
    rest = math.fsum(w for w, i in zip(weights, inside, strict=True) if not i)
    if (held <= 0 and share > 0) or (rest <= 0 and share < 1):
        raise RecipeError(
            f"--vary: {', '.join(members)} cannot have a share of {share:g}: one side of the mixture weighs "
            f"nothing"
        )
    return tuple(
        (share * w / held if held else 0.0) if i else ((1 - share) * w / rest if rest else 0.0)
        for w, i in zip(weights, inside, strict=True)
    )
