"""``datamix recommend``: from a table of runs to weights, a verdict, a page, and a recipe that builds.

Reads runs.csv (or joins the ``losses.jsonl`` below a folder of ``datamix propose`` into it), takes sizes and caps from the recipe where
one is named, asks ``fitting`` and writes what was asked for. Files of others are never replaced.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from datamix.core.errors import RecipeError
from datamix.core.machine import failures_at
from datamix.fitting import expressions
from datamix.fitting.answer import Answer, KindOfRuns
from datamix.fitting.laws import Floats
from datamix.fitting.recommendation import (
    BASELINES,
    Keep,
    Question,
    Recommendation,
    predicted_losses,
    recommend,
)
from datamix.fitting.runs import (
    RUNS,
    Kind,
    Runs,
    base_losses,
    join_losses,
    read_runs,
    read_table,
    where,
    write_table,
)
from datamix.fitting.statistics import spearman
from datamix.fitting.swarm import Interval, target_of
from datamix.fitting.two_sources import MIN_RUNS
from datamix.jobs.propose import Mixtures, Pool, prepared
from datamix.pipeline.built_sets import default_cache
from datamix.pipeline.progress import Screen
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe

RECIPE, PAGE, PREDICTED = "recommended.yaml", "recommendation.html", "predicted.csv"
_MARK = "# Recommended by datamix from "
_LOCAL = ("path", "against", "tokenizer", "chat_template", "scores", "exclude")  # keys of paths


@dataclass(frozen=True)
class Request:
    """The options of the command."""

    path: Path
    target: str | None = None
    keep: tuple[str, ...] = ()
    base: str | None = None
    share: str | None = None
    where: tuple[str, ...] = ()
    recipe: Recipe | None = None
    predict: Path | None = None
    out: Path | None = None


def answer(request: Request, screen: Screen | None = None) -> Answer:
    """Read, fit, judge and write. Raises RecipeError for a bad file, expression or recipe."""
    if request.predict is not None and request.out is None:
        raise RecipeError("--predict writes predicted.csv into a folder: name it with -o FOLDER.")
    notes: list[str] = []
    path = request.path
    if path.is_dir():
        if joined := join_losses(path):
            notes.append(f"Joined the losses of {joined} runs into {path / RUNS}.")
        path = path / RUNS
    every = where(read_runs(path), request.where)
    amounts = expressions.target_amounts(request.target, every.targets, every.losses)
    runs, kinds = _choose_kind(every, amounts)
    for text in request.keep:
        expressions.keep_name(text, every.targets)
    needs_base = request.base is not None or any(expressions.needs_base(text) for text in request.keep)
    base = base_losses(every, request.base) if needs_base and request.keep else None
    keeps = tuple(expressions.read_keep(text, every.targets, base) for text in request.keep)
    with _pool(request, screen or Screen(quiet=True)) as pool:
        mixtures = None if pool is None else pool.mixtures
        question, parts = _question(request, runs, amounts, keeps, mixtures)
        result = recommend(question)
        weights = _by_source(result, runs, mixtures, parts)
        notes = [*notes, *every.notes, *result.notes, *_side_notes(result, question)]
        found = Answer(result, weights, kinds, tuple(notes))
        written = _write(request, found, path, pool, parts)
        return replace(found, written=tuple(written))


@contextmanager
def _pool(request: Request, screen: Screen) -> Iterator[Pool | None]:
    if request.recipe is None:
        yield None
        return
    name = Path(request.recipe.name)
    home = request.path if (request.path / RUNS).is_file() else name  # where the preparation of `propose` is
    with prepared(request.recipe, Options(name, default_cache(home)), 1.0, screen) as pool:
        yield pool


def _choose_kind(every: Runs, amounts: Floats) -> tuple[Runs, tuple[KindOfRuns, ...]]:
    """The runs that the law is fitted to: of the largest kind that has enough of them, else of the one with the most."""
    by_kind: dict[Kind, list[int]] = {}
    for number, kind in enumerate(every.kinds):
        by_kind.setdefault(kind, []).append(number)
    least = MIN_RUNS if len(every.sources) == 2 else 2 * len(every.sources) + 2
    observed = target_of(every.losses, amounts)
    known = {kind: int(np.isfinite(observed[rows]).sum()) for kind, rows in by_kind.items()}

    def rank(kind: Kind) -> tuple[bool, int, tuple[float, ...]]:
        enough = known[kind] >= least
        return enough, 0 if enough else known[kind], tuple(value or 0.0 for value in kind)

    chosen = max(by_kind, key=rank)
    kinds = tuple(
        KindOfRuns(kind, len(rows), kind == chosen, _rank_between(every, observed, by_kind[chosen], rows))
        for kind, rows in by_kind.items()
    )
    return every.take(by_kind[chosen]), kinds if len(kinds) > 1 else ()


def _rank_between(runs: Runs, observed: Floats, chosen: Sequence[int], other: Sequence[int]) -> float | None:
    def by_mixture(rows: Sequence[int]) -> dict[tuple[float, ...], float]:
        return {tuple(np.round(runs.weights[i], 5).tolist()): observed[i] for i in rows}

    a, b = by_mixture(chosen), by_mixture(other)
    both = [key for key in a if key in b]
    return spearman(np.array([a[k] for k in both]), np.array([b[k] for k in both]))


def _question(
    request: Request, runs: Runs, amounts: Floats, keeps: tuple[Keep, ...], mixtures: Mixtures | None
) -> tuple[Question, tuple[Floats, ...]]:
    """What is asked, over sources or, where there are two groups, over these; and how groups are shared inside."""
    baselines = {"uniform": np.full(len(runs.sources), 1 / len(runs.sources))}
    for number, name in enumerate(runs.names):
        if name in BASELINES and name != "uniform":
            baselines[name] = runs.weights[number]
    caps = prior = None
    groups: Mapping[str, tuple[str, ...]] = {}
    if mixtures is not None:
        order = _order(runs, mixtures)
        baselines |= {name: known[order] for name, known in mixtures.known.items()}
        caps, prior, groups = mixtures.caps[order], mixtures.known["unimax"][order], mixtures.groups
    parts: tuple[Floats, ...] = ()
    if len(groups) == 2 and len(runs.sources) > 2 and _shared_alike(runs, groups):
        assert mixtures is not None
        assert caps is not None
        assert prior is not None
        where_ = [[runs.sources.index(name) for name in members] for members in groups.values()]
        parts = mixtures.parts
        baselines = {name: np.array([known[i].sum() for i in where_]) for name, known in baselines.items()}
        caps = np.array(
            [
                min(1.0, float((caps[i] / np.maximum(p, 1e-12)).min()))
                for i, p in zip(where_, parts, strict=True)
            ]
        )
        prior = np.array([prior[i].sum() for i in where_])
        runs = runs.merged(groups)
    side = _side(request, keeps, runs)
    return Question(runs, amounts, keeps, baselines, caps, prior, side), parts


def _order(runs: Runs, mixtures: Mixtures) -> list[int]:
    """The place of each source of the runs in the recipe. Raises RecipeError where they are not the same."""
    if unknown := [name for name in runs.sources if name not in mixtures.names]:
        raise RecipeError(
            f"The runs weigh {', '.join(unknown[:5])}, and the recipe has the sources {', '.join(mixtures.names)}. Name the recipe the "
            "runs were made from, or rename the columns."
        )
    if lacking := [name for name in mixtures.names if name not in runs.sources]:
        raise RecipeError(
            f"The recipe has the source {lacking[0]}, and the runs have no column weight:{lacking[0]}. Name the recipe the runs were "
            "made from, or add the column (0 where a run did without it)."
        )
    return [mixtures.names.index(name) for name in runs.sources]


def _shared_alike(runs: Runs, groups: Mapping[str, Sequence[str]]) -> bool:
    """Whether groups were shared inside in one way in all runs, or runs are too few for the sources by themselves."""
    if len(runs.names) < 2 * len(runs.sources) + 2:
        return True
    merged = runs.merged(groups)
    for side, members in enumerate(groups.values()):
        own = runs.weights[:, [runs.sources.index(name) for name in members]]
        part = own / np.maximum(merged.weights[:, side : side + 1], 1e-12)
        seen = part[merged.weights[:, side] > 0.01]
        if len(seen) and float(np.abs(seen - np.median(seen, axis=0)).max()) > 0.02:
            return False
    return True


def _side(request: Request, keeps: Sequence[Keep], runs: Runs) -> str | None:
    """The source or group whose critical share is told. Raises RecipeError for a --share that is neither."""
    named = [runs.targets[keep.target] for keep in keeps if runs.targets[keep.target] in runs.sources]
    if named:
        return named[0]
    if request.share is not None and request.share not in runs.sources:
        raise RecipeError(
            f"--share {request.share}: no source or group has this name; there are {', '.join(runs.sources[:8])}."
        )
    return request.share


def _side_notes(result: Recommendation, question: Question) -> list[str]:
    """Why there is no critical share, or how far it can be trusted."""
    if not question.keeps or len(question.runs.sources) != 2:
        return []
    if question.side is None:
        return [
            "Name the side whose smallest share is asked for with --share: no source or group is called like the loss in --keep."
        ]
    if result.critical is None:
        return (
            []
            if result.verdict == "cannot_tell"
            else [f"No share of {question.side} keeps what --keep asks for, by these runs."]
        )
    if not result.critical.inside:
        return ["The critical share is beyond the shares that were run: confirm it with one more run."]
    return []


def _by_source(
    result: Recommendation, runs: Runs, mixtures: Mixtures | None, parts: Sequence[Floats]
) -> dict[str, Interval]:
    if not parts or mixtures is None:
        return dict(result.weights)
    weights: dict[str, Interval] = {}
    for (group, members), part in zip(mixtures.groups.items(), parts, strict=True):
        whole = result.weights.get(group)
        for name, share in zip(members, part.tolist(), strict=True):
            if whole is not None:
                weights[name] = Interval(whole.mean * share, whole.low * share, whole.high * share)
    return weights


def _write(
    request: Request, found: Answer, path: Path, pool: Pool | None, parts: tuple[Floats, ...]
) -> Iterator[Path]:
    """The files of -o, each written whole. Raises RecipeError where one is somebody else's."""
    out = request.out
    if out is None:
        return
    texts: dict[str, str] = {}
    if pool is not None and found.result.verdict != "cannot_tell":
        texts[RECIPE] = _recipe_text(pool, found, out, path)
    from datamix.reporting.recommendation_page import render_recommendation

    texts[PAGE] = render_recommendation(found, path.name)
    with failures_at(out, "writing the recommendation", "choose another folder with -o"):
        out.mkdir(parents=True, exist_ok=True)
        for name in (*texts, *([PREDICTED] if request.predict else [])):
            _refuse_others(out / name)
        for name, text in texts.items():
            (out / name).write_text(text, encoding="utf-8")
            yield out / name
        if request.predict is not None:
            _write_predictions(request.predict, out / PREDICTED, found)
            yield out / PREDICTED


def _refuse_others(path: Path) -> None:
    """Raises RecipeError where a file of this name is not one that this command wrote."""
    marks = {RECIPE: _MARK, PAGE: "datamix recommend", PREDICTED: ",predicted:target"}
    if path.exists() and marks[path.name] not in path.read_text(encoding="utf-8", errors="replace"):
        raise RecipeError(
            f"{path} is there already, and `datamix recommend` did not write it. Move it away, or choose another -o."
        )


def _write_predictions(other: Path, out: Path, found: Answer) -> None:
    """Another table with the predicted losses of its mixtures. Raises RecipeError where its sources are others."""
    question, model = found.result.question, found.result.model
    mixtures = read_runs(other, need_losses=False)
    ours = list(question.runs.sources)
    if sorted(mixtures.sources) != sorted(ours):
        raise RecipeError(
            f"--predict {other}: its weights are of {', '.join(mixtures.sources[:8])}, and the runs' of {', '.join(ours[:8])}. They need "
            "the same weight:NAME columns."
        )
    if model is None:
        raise RecipeError("--predict: no run has losses, and nothing can be predicted.")
    weights = mixtures.weights[:, [mixtures.sources.index(name) for name in ours]]
    losses, target = predicted_losses(model, weights, question.amounts)
    header, rows = read_table(other)
    names = [f"predicted:{name}" for name in question.runs.targets]
    seen = np.asarray(np.isfinite(question.runs.losses).any(axis=0))
    kept = [
        row
        for number, row in enumerate(rows, 1)
        if (row.get("run", "").strip() or str(number)) not in mixtures.bases
    ]
    for number, row in enumerate(kept):  # rows without weights stay empty
        row |= {name: f"{losses[number, i]:.6g}" if seen[i] else "" for i, name in enumerate(names)}
        row["predicted:target"] = f"{target[number]:.6g}"
    header = [name for name in header if not name.startswith("predicted:")]
    write_table(out, [*header, *names, "predicted:target"], rows)


def _recipe_text(pool: Pool, found: Answer, out: Path, path: Path) -> str:
    """The recipe with the recommended weights, tried on the rows there are: what is written builds."""
    import yaml

    names = pool.mixtures.names
    shares = np.array([found.weights[name].mean for name in names])
    for raised in (1.0, 2.0, 4.0):  # a source needs enough for a row
        least = np.minimum(pool.mixtures.least * raised, 0.5 / len(names))
        tried = np.maximum(shares, least)
        tried = tried / tried.sum()
        try:
            pool.mixed(tried, "recommended", pool.mixtures.total)
            break
        except RecipeError as error:
            problem = error
    else:
        raise RecipeError(f"The recommended weights cannot be built: {problem}")
    recipe = pool.recipe
    value = recipe.resolved()
    weights = {name: float(f"{share:.6g}") for name, share in zip(names, tried.tolist(), strict=True)}
    value["name"] = f"{recipe.name}-recommended"
    value["mix"] |= {
        "stages": [{"name": "main", "share": 1.0, "weights": weights}],
        "weights": None,
        "replay": None,
    }
    if recipe.mix.on_short == "error":
        value["mix"]["on_short"] = "shrink"  # rounding may not leave the set short of a row
    value = _without_nothing(_moved(value, recipe.base, out))
    head = f"{_MARK}{path.name}: {found.result.because}\n# Verdict: {found.result.verdict}. Only mix and name differ from {recipe.name}.\n"
    return head + yaml.safe_dump(value, allow_unicode=True, sort_keys=False, width=10_000)


def _without_nothing(value: Any) -> Any:
    """A value without keys that are null: they are the defaults."""
    if isinstance(value, dict):
        return {key: _without_nothing(item) for key, item in value.items() if item is not None}
    return [_without_nothing(item) for item in value] if isinstance(value, list) else value


def _moved(value: Any, base: str, out: Path, key: str = "") -> Any:
    """A recipe's value with its relative paths written from another folder."""
    if isinstance(value, dict):
        return {name: _moved(item, base, out, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_moved(item, base, out, key) for item in value]
    if key not in _LOCAL or not isinstance(value, str) or "://" in value or os.path.isabs(value):
        return value
    if key == "tokenizer" and not Path(base, value).exists():
        return value  # an id of the Hub
    moved = os.path.relpath(os.path.join(base, value), out)
    return f"{moved}/" if value.endswith("/") else moved
