"""What ``datamix recommend`` prints: the verdict, then weights beside what they are compared with, then losses."""

from __future__ import annotations

from collections.abc import Sequence

from datamix.fitting.answer import Answer
from datamix.fitting.runs import KINDS, Kind
from datamix.fitting.swarm import Interval
from datamix.pipeline.progress import table_text
from datamix.reporting.summaries import plain_table

BASELINE_WORDS = {
    "recommended": "recommended",
    "recipe": "the recipe",
    "proportional": "proportional",
    "uniform": "uniform",
    "unimax": "UniMax",
    "best_observed": "best observed run",
}
VERDICT_WORDS = {
    "better": "better",
    "indistinguishable": "cannot be told apart",
    "cannot_tell": "these runs cannot tell",
}


def recommendation_text(answer: Answer) -> str:
    """The answer for a terminal."""
    result = answer.result
    begin = "" if result.verdict == "cannot_tell" else f"Verdict: {VERDICT_WORDS[result.verdict]}. "
    lines = [f"{begin}{result.because}", ""]
    if answer.weights:
        table = plain_table("source", ("weight", "5 %", "95 %"))
        for name, weight in answer.weights.items():
            table.add_row(name, *(f"{100 * value:.1f} %" for value in (weight.mean, weight.low, weight.high)))
        if result.verdict == "cannot_tell":
            lines.append("The optimum of the law, which these runs do not support:")
        lines += [table_text(table), ""]
    if result.predicted:
        table = plain_table("mixture", ("target", "5 %", "95 %", "recommended is better by", "5 %", "95 %"))
        for name, value in result.predicted.items():
            gain = result.gains.get(name)
            shown = ("", "", "") if gain is None else numbers(gain)
            table.add_row(BASELINE_WORDS[name], *numbers(value), *shown)
        lines += [table_text(table), ""]
    lines += [fit_sentence(answer), *critical_sentence(answer)]
    for kind in answer.kinds:
        rank = (
            ""
            if kind.rank is None or kind.chosen
            else f", ranked as those of the law with a correlation of {kind.rank:.2f}"
        )
        used = ", to which the law is fitted" if kind.chosen else ""
        lines.append(f"{kind.num_runs} runs of {kind_words(kind.kind)}{used}{rank}.")
    return "\n".join([*lines, *answer.notes]).rstrip()


def numbers(interval: Interval) -> tuple[str, str, str]:
    """Mean and ends in four digits."""
    return f"{interval.mean:.4g}", f"{interval.low:.4g}", f"{interval.high:.4g}"


def fit_sentence(answer: Answer) -> str:
    """How well the law predicts runs that it has not seen, beside what there is to predict."""
    result, model = answer.result, answer.result.model
    rank = None if model is None else model.spearman_cv
    error = None if model is None else model.rmse_cv
    parts = [
        f"rank correlation {'unknown' if rank is None else f'{rank:.3f}'}",
        f"error {'unknown' if error is None else f'{error:.3g}'}",
        f"spread of the runs {'unknown' if result.spread is None else f'{result.spread:.3g}'}",
        f"noise of repeats {'unknown, no mixture was run twice' if result.noise is None else f'{result.noise:.3g}'}",
    ]
    return f"Of runs that a fit has not seen: {', '.join(parts)}."


def critical_sentence(answer: Answer) -> Sequence[str]:
    """The smallest share that keeps the bound, where it can be told."""
    critical = answer.result.critical
    if critical is None:
        return []
    share = critical.share
    bounds = " and ".join(keep.text for keep in answer.result.question.keeps)
    return [
        f"The smallest share of {critical.source} for {bounds}: {share.mean:.1%} (5 to 95 %: {share.low:.1%} to {share.high:.1%})."
    ]


def kind_words(kind: Kind) -> str:
    """``params 1e+06, tokens 1e+09``."""
    known = [f"{name} {value:g}" for name, value in zip(KINDS, kind, strict=True) if value is not None]
    return ", ".join(known) or "unknown size"
