"""What each cleaning step would do to a file, before it is switched on: every step alone, with its defaults.

One pass over the first 20,000 records; nothing is written. A step counts the records it would drop, by reason, and those it
would fix, with one example each. Cost: all steps over the sample, some seconds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from rich.text import Text

from datamix.clean import STEPS, Step, clean, require
from datamix.core.errors import DataError, RecipeError, visible
from datamix.core.records import RecordKind, texts
from datamix.formats import ShapeSpec, shape
from datamix.pipeline.scan import recognise
from datamix.read import read
from datamix.reporting.decode import ADDED, HEAD, REMOVED, SOFT, render

SAMPLE_RECORDS = 20_000
_ONLY: dict[str, tuple[RecordKind, ...]] = {"sft_checks": ("sft",), "preference_checks": ("preference",)}
_SHOWN_CHARS = 200  # of a dropped record, before it is cut to the line
_CHANGE_CHARS, _BEFORE_CHARS = 20, 7  # of a fixed text: in all, and before the place that changes
_TRIED_ROWS = 64  # of a batch, for an example that only one fix changes
_LINE_COLUMNS = 112


@dataclass
class _Tally:
    """What one step would do: records by reason of a drop or name of a fix, and the first of each."""

    step: Step
    drops: Counter[str] = field(default_factory=Counter)
    fixes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, batch: pa.RecordBatch, kind: RecordKind) -> None:
        """Run the step over a batch."""
        cleaned = clean(batch, kind, [self.step])
        for row, reason in cleaned.dropped.items():
            self.drops[reason] += 1
            if reason not in self.examples:
                text = texts(batch.slice(row, 1), kind)[0].as_py()
                self.examples[reason] = f"record {batch['record'][row]}: {_line(text[:_SHOWN_CHARS])}"
        self.fixes.update({name: num for name, num in cleaned.fixed.items() if num})
        if self.fixes.keys() <= self.examples.keys():
            return
        before, after = texts(batch, kind), texts(cleaned.batch, kind)  # a step that fixes drops nothing
        rows = pc.indices_nonzero(pc.fill_null(pc.not_equal(before, after), False)).to_pylist()
        for row in rows[:_TRIED_ROWS]:
            alone = clean(batch.slice(row, 1), kind, [self.step]).fixed
            names = [name for name, num in alone.items() if num]
            if len(names) == 1 and names[0] not in self.examples:
                old, new = before[row].as_py(), after[row].as_py()
                pairs = enumerate(zip(old, new, strict=False))
                same = next((i for i, (a, b) in pairs if a != b), min(len(old), len(new)))
                shown = slice(max(same - _BEFORE_CHARS, 0), max(same - _BEFORE_CHARS, 0) + _CHANGE_CHARS)
                change = f"{_line(old[shown])} → {_line(new[shown])}"
                self.examples[names[0]] = f"record {batch['record'][row]}: {change}"

    def lines(self, num_records: int) -> list[Text]:
        """The counts as text, the most frequent first."""
        lines = [Text(self.step.name, HEAD)]
        for verb, style, counts in (("drop", REMOVED, self.drops), ("fix ", ADDED, self.fixes)):
            for name, num in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
                label = "" if name == self.step.name else name.removeprefix(self.step.name + "_")
                line = Text(f"  {verb} {label:22s}", style)
                line.append(f"{num:>8,}{num / max(num_records, 1):>8.1%}   ")
                line.append(self.examples.get(name, ""), SOFT)
                line.truncate(_LINE_COLUMNS, overflow="ellipsis")
                lines.append(line)
        if len(lines) == 1:
            lines[0].append("  nothing", SOFT)
        return lines


def show_cleaning(path: Path) -> str:
    """What ``clean`` would do, step by step. Raises DataError: the file's records are in no known format."""
    seen = recognise(str(path))
    if seen.detection is None:
        raise DataError(f"{path}: its records are in no known format: {seen.fields()}.")
    kind = seen.detection.kind
    tallies, skipped = [], {}
    for name, options in STEPS.items():
        if name == "keep":  # a band of a number that only a recipe knows
            continue
        step = Step(name, options())
        try:
            require([step])
        except RecipeError as error:
            skipped[name] = str(error)
            continue
        if kind in _ONLY.get(name, (kind,)):
            tallies.append(_Tally(step))
    spec = ShapeSpec(seen.detection.format, kind, seen.detection.columns)
    num_records = num_rejects = 0
    for rows in read(seen.piece, limit=SAMPLE_RECORDS):
        shaped = shape(rows, 0, spec)
        num_records += shaped.batch.num_rows
        num_rejects += len(rows.rejects) + len(shaped.rejects)
        for tally in tallies if shaped.batch.num_rows else ():
            tally.add(shaped.batch, kind)
    rest = f", {num_rejects:,} more do not fit" if num_rejects else ""
    notes = [f"Not tried: {name}: {why}" for name, why in skipped.items()]
    notes.append(
        "Each step alone with its defaults, records that do not fit left out. Switch one on with `clean:` in a recipe."
    )
    return render(
        Text(f"{path}: {num_records:,} {kind} records{rest}"),
        *(line for tally in tallies for line in tally.lines(num_records)),
        *(Text(note, SOFT) for note in notes),
    )


def _line(text: str) -> str:
    return visible(" ".join(text.split()))
