"""The page of ``datamix recommend``: the verdict, weights with intervals, how well the law predicts, losses over shares."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datamix import __version__
from datamix.fitting.answer import Answer
from datamix.fitting.recommendation import Keep
from datamix.fitting.swarm import Swarm, target_of
from datamix.fitting.two_sources import GRID, TwoSources
from datamix.reporting.charts import BarRow, Bars, Cell, Curve, Legend, Plot, Section, Table, Tick, path
from datamix.reporting.page import render_page
from datamix.reporting.recommendation_table import (
    BASELINE_WORDS,
    VERDICT_WORDS,
    critical_sentence,
    fit_sentence,
    kind_words,
    numbers,
)
from datamix.reporting.verdicts import Verdict
from datamix.reporting.words import Words, percent

Floats = NDArray[np.float64]

_MAX_PLOTS = 12  # sources whose losses are drawn, the largest weights first
_NUM_TICKS = 4


def render_recommendation(answer: Answer, name: str) -> str:
    """The page as HTML; ``name`` is the table of runs."""
    result = answer.result
    runs = result.question.runs
    opening = [Verdict("good" if result.verdict == "better" else "look", result.because)]
    opening += [
        Verdict("look" if not result.critical or not result.critical.inside else "good", s)
        for s in critical_sentence(answer)
    ]
    opening += [Verdict("look", note) for note in answer.notes]
    facts = [
        ("verdict", VERDICT_WORDS[result.verdict]),
        ("runs", f"{len(runs.names):,}"),
        ("sources", f"{len(answer.weights) or len(runs.sources):,}"),
        ("targets", f"{int((result.question.amounts > 0).sum()):,}"),
        ("rank correlation, unseen runs", _shown(result.model.spearman_cv if result.model else None)),
        ("error, unseen runs", _shown(result.model.rmse_cv if result.model else None)),
        ("spread of the runs", _shown(result.spread)),
        ("noise of repeats", _shown(result.noise)),
    ]
    sections = [_weights(answer), _mixtures(answer), *_fit(answer), *_shares(answer), *_kinds(answer)]
    shown = [section for section in sections if section is not None]
    footer = [f"Made by datamix {__version__}, `datamix recommend`, from {name}."]
    return render_page(f"Recommended weights from {name}", facts, opening, shown, footer, Words())


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def _weights(answer: Answer) -> Section | None:
    if not answer.weights:
        return None
    lead = "Mean of the optima of all refits. Full colour reaches to the lower end of the interval (5 %), light colour to the upper (95 %); the tick is the mean."
    if answer.result.verdict == "cannot_tell":
        lead = (
            "These runs do not support a recommendation: this is only where the optimum of the law is. "
            + lead
        )
    top = max(weight.high for weight in answer.weights.values()) or 1.0
    rows = [
        BarRow(
            name,
            [
                Cell(
                    percent(w.mean, 1),
                    [(1, 100 * w.low / top), (9, 100 * (w.high - w.low) / top)],
                    100 * w.mean / top,
                )
            ],
        )
        for name, w in answer.weights.items()
    ]
    table = [[name, *(percent(x, 1) for x in (w.mean, w.low, w.high))] for name, w in answer.weights.items()]
    return Section(
        "weights", "Weights", lead,
        bars=[Bars("Weight of each source", ["weight"], rows)],
        tables=[Table(["source", "weight", "5 %", "95 %"], table)],
    )  # fmt: skip


def _mixtures(answer: Answer) -> Section | None:
    result = answer.result
    if not result.predicted:
        return None
    rows = []
    for name, value in result.predicted.items():
        gain = result.gains.get(name)
        rows.append(
            [BASELINE_WORDS[name], *numbers(value), *(("", "", "") if gain is None else numbers(gain))]
        )
    lead = "The target each mixture would reach in one run, and by how much the recommended one is lower. An interval that holds 0 tells nothing apart."
    head = ["mixture", "target", "5 %", "95 %", "better by", "5 %", "95 %"]
    return Section("mixtures", "Against other mixtures", lead, tables=[Table(head, rows)])


def _fit(answer: Answer) -> list[Section]:
    model = answer.result.model
    if model is None:
        return []
    known = np.isfinite(model.unseen_target) & np.isfinite(model.observed)
    if known.sum() < 2:
        return []
    x, y = model.unseen_target[known], model.observed[known]
    low, high = _ends(np.concatenate([x, y]))
    curves = [
        Curve("M0 1000L1000 0", 8, "asked"),
        Curve(_dots((x - low) / (high - low), (y - low) / (high - low)), 1, "dots"),
    ]
    plot = Plot(
        "Each run, predicted without it",
        "predicted target",
        "observed target",
        curves,
        _ticks(low, high),
        _ticks(low, high),
    )
    return [Section("fit", "How well the law predicts", fit_sentence(answer), plots=[plot])]


def _shares(answer: Answer) -> list[Section]:
    """Target (or the kept losses) over the share of each source; two sources with the band of the drawn curves."""
    result, model = answer.result, answer.result.model
    if model is None or result.mixture is None:
        return []
    if isinstance(model, TwoSources):
        return [Section("shares", "Losses over the share", _TWO, _LEGEND, plots=_curve_plots(answer, model))]
    order = np.argsort(-result.mixture)[:_MAX_PLOTS]
    plots = [_line_plot(answer, model, int(source)) for source in order]
    lead = "The law along the share of one source, the others as recommended; each dot is a run, which differs in the other shares too."
    return [Section("shares", "Target over the share of each source", lead, plots=plots)]


_TWO = "Solid: the mean of the curves that fit; dotted: 5 to 95 % of them; dots: the runs."
_LEGEND = (Legend("mean", 1), Legend("5 to 95 %", 8), Legend("runs", 4))


def _curve_plots(answer: Answer, model: TwoSources) -> list[Plot]:
    question = answer.result.question
    name = question.runs.sources[0]
    kept = {keep.target: keep for keep in question.keeps}
    shown = [*kept, *(i for i in np.flatnonzero(question.amounts).tolist() if i not in kept)][
        : _MAX_PLOTS - 1
    ]
    lines: list[tuple[str, Floats, Floats, Keep | None]] = [("target", model.target, model.observed, None)]
    lines += [(question.runs.targets[i], model.curves[:, i], model.losses[:, i], kept.get(i)) for i in shown]
    plots = []
    for title, curves, observed, keep in lines:
        low, middle, high = (
            np.quantile(curves, 0.05, axis=0),
            curves.mean(axis=0),
            np.quantile(curves, 0.95, axis=0),
        )
        marks = np.array([keep.limit] if keep else [])
        bottom, top = _ends(np.concatenate([middle, observed[np.isfinite(observed)], marks]))

        def drawn(line: Floats, bottom: float = bottom, top: float = top) -> str:
            return path(GRID[::5], np.clip((line[::5] - bottom) / (top - bottom), 0, 1), 1.0)

        dots = _dots(model.share, (observed - bottom) / (top - bottom))
        plots.append(
            Plot(
                f"Loss of {title}" if title != "target" else "Target", f"share of {name}", "loss",
                [Curve(drawn(low), 8, "asked"), Curve(drawn(high), 8, "asked"), Curve(drawn(middle), 1), Curve(dots, 4, "dots")],
                _part_ticks(1.0), _ticks(bottom, top),
                y_marks=[(100 * (keep.limit - bottom) / (top - bottom), keep.text)] if keep else (),
                x_marks=_critical_mark(answer, name) if keep else (),
            )
        )  # fmt: skip
    return plots


def _critical_mark(answer: Answer, first: str) -> Sequence[Tick]:
    critical = answer.result.critical
    if critical is None:
        return ()
    share = critical.share.mean if critical.source == first else 1 - critical.share.mean
    return [(100 * share, f"{critical.source} {percent(critical.share.mean, 1)}")]


def _line_plot(answer: Answer, model: Swarm, source: int) -> Plot:
    question, mixture = answer.result.question, answer.result.mixture
    assert mixture is not None
    shares = question.runs.weights[:, source]
    top_share = max(float(shares.max()), 1e-3)
    grid = np.linspace(0.0, top_share, 101)
    rest = np.delete(mixture, source)
    others = np.outer(1 - grid, rest / max(rest.sum(), 1e-12))
    line = target_of(model.predict(np.insert(others, source, grid, axis=1)), question.amounts)
    bottom, top = _ends(np.concatenate([line, model.observed[np.isfinite(model.observed)]]))
    curves = [
        Curve(path(grid / top_share, (line - bottom) / (top - bottom), 1.0), 1),
        Curve(_dots(shares / top_share, (model.observed - bottom) / (top - bottom)), 4, "dots"),
    ]
    mean = float(mixture[source])
    marks = [(100 * mean / top_share, percent(mean, 1))] if mean <= top_share else []
    name = question.runs.sources[source]
    return Plot(
        name, f"share of {name}", "target", curves, _part_ticks(top_share), _ticks(bottom, top), x_marks=marks
    )


def _kinds(answer: Answer) -> list[Section]:
    if not answer.kinds:
        return []
    rows = [
        [kind_words(k.kind), f"{k.num_runs:,}", "yes" if k.chosen else "", _shown(k.rank)]
        for k in answer.kinds
    ]
    lead = "Runs of each size and length by themselves. The correlation is that of the target with the runs of the law, over mixtures that both have."
    return [
        Section("sizes", "Sizes", lead, tables=[Table(["runs of", "runs", "law", "rank correlation"], rows)])
    ]


def _ends(values: Floats) -> tuple[float, float]:
    low, high = float(np.min(values)), float(np.max(values))
    room = 0.05 * (high - low) or 0.5
    return low - room, high + room


def _dots(x: Floats, y: Floats) -> str:
    known = np.isfinite(x) & np.isfinite(y)
    across, down = np.rint(1000 * x[known]).astype(int), np.rint(1000 - 1000 * y[known]).astype(int)
    return "".join(f"M{a} {b}h0" for a, b in zip(across.tolist(), down.tolist(), strict=True))


def _ticks(low: float, high: float) -> list[Tick]:
    """Round values between two ends."""
    step = (high - low) / _NUM_TICKS
    power = 10.0 ** np.floor(np.log10(step))
    step = next(power * n for n in (1, 2, 2.5, 5, 10) if power * n >= step)
    first = int(np.ceil(low / step))
    return [
        (float(100 * (n * step - low) / (high - low)), f"{n * step:.6g}")
        for n in range(first, int(np.floor(high / step)) + 1)
    ]


def _part_ticks(top: float) -> list[Tick]:
    return [(25.0 * n, percent(top * n / 4, 0 if top > 0.2 else 1)) for n in range(5)]
