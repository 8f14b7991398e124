"""The losses of a training run on the report page: by source over tokens, their change since the start, the gap to training rows.

Forgetting is a validation loss above its value at step 0. Overfitting begins at the lowest validation loss of a source where
that loss rises afterwards while the loss of its training rows goes on falling; the epoch is how often the run had seen the source's
tokens by then, counted from the rows in their order. Costs one pass over two small columns of the set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from datamix.core.arrays import offsets_from_lengths
from datamix.core.errors import RecipeError
from datamix.core.losses import Curves, Loss
from datamix.pipeline.built_sets import open_any
from datamix.reporting import charts
from datamix.reporting.charts import Curve, Legend, Plot, Section, Table
from datamix.reporting.verdicts import Verdict
from datamix.reporting.words import Words

TOLERANCE = 0.01  # nats: less is neither forgetting nor overfitting
_SIGNIFICANT = 4
_ROWS_AT_ONCE = 1 << 16
_MAX_SENTENCES = 6


@dataclass(frozen=True)
class SourceLosses:
    """What was measured of one source, by step, and what follows from it."""

    name: str
    validation: tuple[Loss, ...]
    train: tuple[Loss, ...]
    overfits: Loss | None  # its lowest validation loss, where it is overfitted from there on
    epoch: float | None = None  # of the source, at that place

    @property
    def change(self) -> float | None:
        """Of the validation loss since step 0; None where that was not measured."""
        measured = self.validation
        return measured[-1].loss - measured[0].loss if measured and measured[0].step == 0 else None

    @property
    def gap(self) -> list[tuple[Loss, float]]:
        """Validation minus training loss, where both were measured."""
        train = {loss.step: loss.loss for loss in self.train}
        return [(loss, loss.loss - train[loss.step]) for loss in self.validation if loss.step in train]


def source_losses(out: Path, manifest: dict[str, Any], curves: Curves) -> list[SourceLosses]:
    """The measurements by source, largest source first. Raises RecipeError for losses of another set."""
    known = manifest["sources"]
    names = {source for source, _ in curves if source is not None}
    if unknown := sorted(names - known.keys()):
        raise RecipeError(
            f"--losses: the file has losses of {', '.join(unknown)}, and {out} has the sources {', '.join(known)}: it is of a run on "
            "another set. Name the losses.jsonl of this one."
        )
    if not any(split == "validation" and source is not None for source, split in curves):
        raise RecipeError(
            "--losses: the file has no validation losses of single sources. `datamix.LossCallback` writes them; by hand, write a "
            'line a source with "split": "validation".'
        )
    result = []
    for name in sorted(names, key=lambda n: -known[n]["emitted"]["tokens"]):
        held_out, train = curves.get((name, "validation"), ()), curves.get((name, "train"), ())
        result.append(SourceLosses(name, held_out, train, overfitting(held_out, train)))
    begins = {s.name: s.overfits for s in result if s.overfits is not None}
    epochs = _epochs(out, manifest, {name: loss.tokens for name, loss in begins.items()}) if begins else {}
    return [SourceLosses(s.name, s.validation, s.train, s.overfits, epochs.get(s.name)) for s in result]


def overfitting(validation: Sequence[Loss], train: Sequence[Loss]) -> Loss | None:
    """The lowest validation loss, where it rose since and the training loss fell since, both by more than the tolerance."""
    if not validation or not train:
        return None
    lowest = min(validation, key=lambda loss: loss.loss)
    at = [loss for loss in train if loss.step <= lowest.step]
    rose = validation[-1].loss - lowest.loss > TOLERANCE
    return lowest if rose and at and at[-1].loss - train[-1].loss > TOLERANCE else None


def _epochs(out: Path, manifest: dict[str, Any], tokens: dict[str, int]) -> dict[str, float]:
    """How often the run had seen each source's tokens when it had trained ``tokens[source]`` tokens in all."""
    rows = open_any(out)
    before, seen = 0, dict.fromkeys(tokens, 0)
    emitted = {name: manifest["sources"][name]["emitted"]["tokens"] for name in manifest["sources"]}
    total = sum(emitted.values()) or 1
    passes = {name: divmod(number, total) for name, number in tokens.items()}
    for low in range(0, len(rows), _ROWS_AT_ONCE):
        table = rows.rows.table(["source", "records"], low, min(low + _ROWS_AT_ONCE, len(rows)))
        pieces = table.column("records").combine_chunks()
        bounds = offsets_from_lengths(pieces.flatten().field("length").to_numpy())
        ends = np.concatenate([[0], np.cumsum(pieces.value_lengths().to_numpy())])
        lengths = np.diff(bounds[ends])
        ended = before + np.cumsum(lengths)
        for name, (_, rest) in passes.items():
            own = pc.equal(table.column("source"), name).to_numpy()
            seen[name] += int(lengths[own & (ended <= rest)].sum())
        before = int(ended[-1])
    return {
        name: (whole * emitted[name] + seen[name]) / max(1, manifest["sources"][name]["available"]["tokens"])
        for name, (whole, _) in passes.items()
    }


def loss_verdicts(losses: Sequence[SourceLosses], say: Words) -> Iterator[Verdict]:
    """What was forgotten, what improved, what is overfitted, in sentences."""
    changes = [(s.change, s) for s in losses if s.change is not None]
    if not changes:
        text = "The losses do not begin at step 0: what was forgotten cannot be told."
        yield Verdict("look", say(text))
    forgotten = sorted((c for c in changes if c[0] > TOLERANCE), key=lambda c: -c[0])
    for change, source in forgotten[:_MAX_SENTENCES]:
        text = "{source} is being forgotten: its validation loss was {first} before training and is {last} ({change})."
        first, last = source.validation[0].loss, source.validation[-1].loss
        numbers = {"first": _number(first), "last": _number(last), "change": f"{change:+.3f}"}
        yield Verdict("look", say(text).format(source=source.name, **numbers))
    lower = [f"{s.name} {change:+.3f}" for change, s in changes if change < -TOLERANCE]
    if lower:
        text = "Validation losses that fell since step 0: {parts}."
        yield Verdict("good", say(text).format(parts=say.join(lower[: 2 * _MAX_SENTENCES])))
    if changes and not forgotten:
        text = "Nothing is forgotten: no validation loss is more than {tolerance} above its start."
        yield Verdict("good", say(text).format(tolerance=TOLERANCE))
    overfitted = [s for s in losses if s.overfits is not None]
    for source in overfitted[:_MAX_SENTENCES]:
        assert source.overfits is not None
        text = "{source} is overfitted from epoch {epoch} (step {step}) on: since then its validation loss rose by {rise}, while that of its training rows fell."
        rise = source.validation[-1].loss - source.overfits.loss
        numbers = {"epoch": f"{source.epoch or 0:.2f}", "step": f"{source.overfits.step:,}"}
        yield Verdict("look", say(text).format(source=source.name, rise=f"{rise:.3f}", **numbers))


def loss_section(losses: Sequence[SourceLosses], curves: Curves, say: Words) -> Section:
    """Three drawings over the tokens trained, and a table."""
    shown = losses[: charts.MAX_SERIES]
    legend = [Legend(source.name, number) for number, source in enumerate(shown, 1)]
    along = say("tokens trained")
    loss = say("nats a token")
    lines = [[(x.tokens, x.loss) for x in source.validation] for source in shown]
    dotted = [[(x.tokens, x.loss) for x in source.train] for source in shown]
    changes = [
        [(x.tokens, x.loss - source.validation[0].loss) for x in source.validation]
        if source.change is not None else [] for source in shown
    ]  # fmt: skip
    gaps = [[(x.tokens, gap) for x, gap in source.gap] for source in shown]
    titles = [
        say("Loss of each source: validation, and training rows dotted"),
        say("Change of the validation loss since step 0: above 0 is forgetting"),
        say("Validation minus training loss: what grows is overfitting"),
    ]
    plots = [_plot((titles[0], along, loss), lines, dotted)]
    plots += [_plot((title, along, loss), made, (), True) for title, made in ((titles[1], changes), (titles[2], gaps)) if any(made)]  # fmt: skip
    head = [say("source"), say("at step 0"), say("lowest"), say("at the end"), say("change"), say("training rows"), say("gap"), say("overfitted from epoch")]  # fmt: skip
    rows = [_row(source) for source in losses]
    whole = curves.get((None, "validation"), ())
    foot = _row(SourceLosses(say("all"), whole, curves.get((None, "train"), ()), None)) if whole else ()
    lead = say(
        "Measured on the same model without dropout: the validation rows of each source, and as many of its training rows."
    )
    return Section("losses", say("Losses"), lead, legend, plots=plots, tables=[Table(head, rows, foot)])


def _row(source: SourceLosses) -> list[str]:
    measured, gaps = source.validation, source.gap
    if not measured:
        return [source.name, *[""] * 4, _number(source.train[-1].loss) if source.train else "", "", ""]
    return [
        source.name,
        _number(measured[0].loss) if measured[0].step == 0 else "",
        _number(min(loss.loss for loss in measured)),
        _number(measured[-1].loss),
        f"{source.change:+.3f}" if source.change is not None else "",
        _number(source.train[-1].loss) if source.train else "",
        f"{gaps[-1][1]:+.3f}" if gaps else "",
        f"{source.epoch:.2f}" if source.epoch is not None else "",
    ]


def _number(loss: float) -> str:
    return f"{loss:.{_SIGNIFICANT}g}"


Points = list[tuple[int, float]]


def _plot(
    titles: tuple[str, str, str], lines: Sequence[Points], dotted: Sequence[Points], zero: bool = False
) -> Plot:
    """Lines over tokens, of one colour a source; ``zero``: the axis holds 0, and marks it."""
    points = np.array([p for line in (*lines, *dotted) for p in line], float)
    right = float(points[:, 0].max()) or 1.0
    values = np.concatenate([points[:, 1], [0.0] if zero else []])
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 0.05
    low, high = low - margin, high + margin

    def curve(line: Points, colour: int, style: str) -> Curve:
        x, y = np.array(line, float).T
        return Curve(charts.path(x / right, y - low, high - low), colour, style)

    curves = [curve(line, n, "line") for n, line in enumerate(lines, 1) if line]
    curves += [curve(line, n, "asked") for n, line in enumerate(dotted, 1) if line]
    marks = [(100 * (0 - low) / (high - low), "")] if zero else []
    x_ticks = charts.round_ticks(right, charts.short_number)
    return Plot(*titles, curves, x_ticks, charts.range_ticks(low, high), y_marks=marks)
