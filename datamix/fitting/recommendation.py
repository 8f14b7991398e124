"""A recommendation with a verdict: weights with intervals, what they would bring over other mixtures, or why these runs cannot tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from datamix.fitting.laws import Floats
from datamix.fitting.optimum import Bound, Infeasible, Problem, optimum
from datamix.fitting.runs import Runs
from datamix.fitting.statistics import exceeds_noise, repeat_noise
from datamix.fitting.swarm import NUM_BOOTSTRAPS, Interval, Swarm, fit_swarm, target_of
from datamix.fitting.two_sources import GRID, MIN_RUNS, NUM_DRAWS, TwoSources, fit_two_sources

_STRENGTH = 0.1  # of the pull towards the prior, times the spread of the runs
_LEAST_RANK = 0.7  # of runs not seen, below which a law is not believed
_SIGNIFICANT = 0.025  # of two sources: how often shuffled losses may fit as well
_SIGNIFICANT_OF_FOUR = 2 / 24 + 1e-9  # four runs have no smaller one
BASELINES = ("recipe", "proportional", "uniform", "unimax", "best_observed")


@dataclass(frozen=True)
class Keep:
    """A bound on one loss, as it was asked for."""

    text: str
    target: int
    limit: float


@dataclass(frozen=True)
class Question:
    """What is asked of the runs. ``caps`` and ``prior`` are of the sources; ``baselines`` mixtures to compare with, by name."""

    runs: Runs
    amounts: Floats  # [num_targets]: the target's weights
    keeps: tuple[Keep, ...] = ()
    baselines: Mapping[str, Floats] = field(default_factory=dict)
    caps: Floats | None = None
    prior: Floats | None = None
    side: str | None = None  # the source or group whose critical share is asked for


@dataclass(frozen=True)
class Critical:
    """The smallest share of a source that keeps a bound."""

    source: str
    share: Interval
    inside: bool  # whether runs stand on both sides of it


@dataclass(frozen=True)
class Recommendation:
    """The answer. ``weights`` and ``predicted`` are empty where nothing could be fitted."""

    question: Question
    verdict: str  # better | indistinguishable | cannot_tell
    because: str
    model: Swarm | TwoSources | None
    weights: Mapping[str, Interval]
    mixture: Floats | None
    predicted: Mapping[str, Interval]
    gains: Mapping[str, Interval]  # over each baseline
    against: str  # the baseline of the verdict
    spread: float | None
    noise: float | None
    critical: Critical | None = None
    notes: tuple[str, ...] = ()


def fit(question: Question) -> Swarm | TwoSources | None:
    """The laws of the runs; None where no run has losses."""
    runs = question.runs
    if not len(runs.names) or not np.isfinite(runs.losses).any():
        return None
    used = np.isfinite(runs.losses).any(axis=0)
    losses = np.where(used, runs.losses, 0.0)
    if len(runs.sources) == 2:
        return fit_two_sources(runs.weights[:, 0], losses, question.amounts, runs.mixtures())
    return fit_swarm(runs.weights, losses, question.amounts, runs.mixtures())


def measured(question: Question) -> tuple[Floats, float | None, float | None, int]:
    """The target of every run, its spread, the noise of repeats and the degrees of freedom of that."""
    observed = target_of(question.runs.losses, question.amounts)
    known = observed[np.isfinite(observed)]
    spread = float(known.std(ddof=1)) if len(known) > 1 else None
    return observed, spread, *repeat_noise(observed, question.runs.mixtures())


def recommend(question: Question) -> Recommendation:
    """Fit, find the optimum of every refit, compare, and judge what may be said."""
    runs, model = question.runs, fit(question)
    observed = target_of(runs.losses, question.amounts)
    known = observed[np.isfinite(observed)]
    _, spread, noise, _ = measured(question)
    refused = refusal(question, model)
    baselines = dict(question.baselines)
    if len(known):
        baselines["best_observed"] = runs.weights[_best_run(question, observed)]
    against = "recipe" if "recipe" in baselines else "best_observed"
    draws: Floats | None = None
    notes: list[str] = []
    if model is not None and spread:
        draws, notes = _optima(question, model, spread)
    if draws is None:
        because = refused or (
            "No mixture within the shares that were run (and the caps) keeps what --keep asks for: loosen it, or run larger shares."
        )
        if model is None or not spread:
            because = refused
        nothing: dict[str, Interval] = {}
        told = _predicted(model, baselines) if model is not None else nothing
        return Recommendation(
            question, "cannot_tell", because, model, {}, None, told, {}, against, spread, noise,
            _critical(question, model, refused), tuple(notes),
        )  # fmt: skip
    assert model is not None
    mixture = draws.mean(axis=0)
    low, high = np.quantile(draws, (0.05, 0.95), axis=0)
    weights = {
        name: Interval(
            float(mixture[i]), min(float(low[i]), float(mixture[i])), max(float(high[i]), float(mixture[i]))
        )
        for i, name in enumerate(runs.sources)
    }
    gains = {name: model.gain(mixture, other) for name, other in baselines.items()}
    predicted = {"recommended": model.expected(mixture), **_predicted(model, baselines)}
    verdict, because = ("cannot_tell", refused) if refused else _compared(gains[against], against)
    return Recommendation(
        question, verdict, because, model, weights, mixture, predicted, gains, against, spread, noise,
        _critical(question, model, refused), tuple(notes),
    )  # fmt: skip


def _best_run(question: Question, observed: Floats) -> int:
    """The run with the lowest target among those that keep every bound; among all where none does."""
    kept = np.isfinite(observed)
    for keep in question.keeps:
        kept &= question.runs.losses[:, keep.target] <= keep.limit
    return int(np.nanargmin(np.where(kept, observed, np.nan) if kept.any() else observed))


def _predicted(model: Swarm | TwoSources, baselines: Mapping[str, Floats]) -> dict[str, Interval]:
    return {name: model.expected(other) for name, other in baselines.items()}


def _compared(gain: Interval, against: str) -> tuple[str, str]:
    other = "the recipe's weights" if against == "recipe" else "those of the best observed run"
    told = f"{gain.mean:.4g} (5 to 95 %: {gain.low:.4g} to {gain.high:.4g})"
    if gain.low > 0:
        return "better", f"The recommended weights are better than {other} by {told}."
    return (
        "indistinguishable",
        f"The recommended weights cannot be told apart from {other}: the difference is {told}, and 0 is within it or below.",
    )


def refusal(question: Question, model: Swarm | TwoSources | None) -> str:
    """Why these runs cannot tell, in one sentence with its remedy; empty where they can."""
    observed, spread, noise, freedom = measured(question)
    runs = question.runs
    num_runs, num_sources = int(np.isfinite(observed).sum()), int((runs.weights.max(axis=0) > 0).sum())
    begin = "These runs cannot tell: "
    two = len(runs.sources) == 2
    least = MIN_RUNS if two else 2 * num_sources + 2
    if num_sources < 2:
        return f"{begin}every run is made of one source. Vary the mixture: `datamix propose RECIPE --runs N` does."
    if num_runs < least:
        rule = "at least 4" if two else f"at least 2 x {num_sources} + 2 = {least}"
        return f"{begin}the target is known of {num_runs} of the runs, and {num_sources} sources need {rule}. Train {least - num_runs} more."
    if not spread or spread <= 1e-9 * max(1.0, abs(float(np.nanmean(observed)))):
        return f"{begin}the target is the same in all {num_runs} runs. Check the losses, or choose mixtures further apart."
    if noise is not None and not exceeds_noise(spread, num_runs, noise, freedom):
        return (
            f"{begin}the runs differ by {spread:.3g} (standard deviation) and repeats of one mixture by {noise:.3g}: the spread is "
            "not above the noise. Choose mixtures further apart, or train longer."
        )
    if isinstance(model, TwoSources):
        most = _SIGNIFICANT_OF_FOUR if num_runs == MIN_RUNS else _SIGNIFICANT
        if model.p_value > most:
            return (
                f"{begin}losses shuffled among the runs fit as well in {model.p_value:.0%} of the cases. Add runs at other shares, or "
                "train longer."
            )
        return ""
    rank = None if model is None else model.spearman_cv
    if rank is None or rank < _LEAST_RANK:
        shown = "none" if rank is None else f"{rank:.2f}"
        return (
            f"{begin}runs that a fit has not seen are ranked with a correlation of {shown}, and {_LEAST_RANK} is the least to trust. Add "
            "runs, train longer, or choose a target that depends more on the mixture."
        )
    return ""


def _limits(question: Question) -> tuple[Floats, Floats]:
    """Caps no higher than what was tried, and the prior: the mean of the runs where none is given."""
    runs = question.runs
    tried = runs.weights.max(axis=0)
    caps = tried if question.caps is None else np.minimum(tried, question.caps)
    prior = runs.weights.mean(axis=0) if question.prior is None else question.prior
    return caps, np.where(caps > 0, np.maximum(prior, 1e-4), 0.0)


def _optima(question: Question, model: Swarm | TwoSources, spread: float) -> tuple[Floats | None, list[str]]:
    """The best mixture of every refit or draw ``[num_draws, num_sources]``; None where the bounds cannot be met."""
    caps, prior = _limits(question)
    notes = []
    if caps.sum() < 1:
        notes.append(
            "The caps of the recipe and what was tried leave less than a whole mixture: caps were scaled up."
        )
        caps = caps / caps.sum()
    if isinstance(model, TwoSources):
        found = _optima_of_curves(question, model, caps, prior / prior.sum(), spread * _STRENGTH)
        num = NUM_DRAWS
    else:
        found, num = [], NUM_BOOTSTRAPS
        bounds = tuple(Bound(np.eye(len(question.amounts))[k.target], k.limit) for k in question.keeps)
        problem = Problem(question.amounts, prior, spread * _STRENGTH, caps, bounds, spread)
        for number in range(NUM_BOOTSTRAPS):
            try:
                found.append(optimum(model.refit(number), problem))
            except Infeasible:
                continue
    if len(found) < num / 2:
        return None, notes
    if len(found) < num:
        notes.append(
            f"In {num - len(found)} of {num} refits no mixture keeps what --keep asks for: they are left out."
        )
    return np.array(found), notes


def _optima_of_curves(
    question: Question, model: TwoSources, caps: Floats, prior: Floats, strength: float
) -> list[Floats]:
    allowed = np.broadcast_to(
        (caps[0] + 1e-9 >= GRID) & (caps[1] + 1e-9 >= 1 - GRID), model.target.shape
    ).copy()
    for keep in question.keeps:
        allowed &= model.allowed(keep.target, keep.limit)
    sides = np.clip(np.stack([GRID, 1 - GRID]), 1e-12, 1)
    pull = strength * (sides * np.log(sides / np.maximum(prior, 1e-9)[:, None])).sum(axis=0)
    value = np.where(allowed, model.target + pull, np.inf)
    best = GRID[value.argmin(axis=1)][np.asarray(allowed.any(axis=1))]
    return [np.array([share, 1 - share]) for share in best]


def _critical(question: Question, model: Swarm | TwoSources | None, refusal: str) -> Critical | None:
    """The smallest share of the kept side that keeps the first bound on it; None where there is none to tell."""
    runs, side = question.runs, question.side
    if not isinstance(model, TwoSources) or not question.keeps or side not in runs.sources or refusal:
        return None
    first = runs.sources.index(side) == 0
    allowed = np.ones((NUM_DRAWS, len(GRID)), bool)
    for keep in question.keeps:
        allowed &= model.allowed(keep.target, keep.limit)
    allowed = allowed if first else allowed[:, ::-1]
    found = allowed.any(axis=1)
    if found.mean() < 0.5:
        return None
    smallest = np.where(found, GRID[allowed.argmax(axis=1)], 1.0)
    low, middle, high = np.quantile(smallest, (0.05, 0.5, 0.95))
    share = runs.weights[:, 0 if first else 1]
    inside = bool((share < middle).any() and (share >= middle).any())
    return Critical(side, Interval(float(middle), float(low), float(high)), inside)


def predicted_losses(model: Swarm | TwoSources, mixtures: Floats, amounts: Floats) -> tuple[Floats, Floats]:
    """Losses ``[num_mixtures, num_targets]`` and the target ``[num_mixtures]`` of mixtures."""
    losses = model.predict(mixtures)
    return losses, target_of(losses, amounts)


def expanded(mixture: Floats, parts: Sequence[Floats]) -> Floats:
    """Weights of groups as weights of sources: each group's weight times its members' parts, in their order."""
    return np.concatenate([weight * part for weight, part in zip(mixture, parts, strict=True)])
