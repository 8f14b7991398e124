"""What each cleaning step would do to a file, before it is switched on: every step alone, with its defaults.

One pass over the first 20,000 records; nothing is written. A step counts the records it would drop, by reason, and those it
would mend, with one example each. Cost: all steps over the sample, some seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from rich.text import Text

from datamix.clean import STEPS, Step, clean, require
from datamix.core.errors import DataError, RecipeError
from datamix.core.records import RecordKind, texts
from datamix.formats import ShapeSpec, shape
from datamix.pipeline.recognise import recognise
from datamix.read import read
from datamix.reporting.decode import visible
from datamix.reporting.terminal import GONE, HEAD, NEW, SOFT, render

SAMPLE_RECORDS = 20_000
_ONLY: dict[str, tuple[RecordKind, ...]] = {"sft_checks": ("sft",), "preference_checks": ("preference",)}
_SHOWN_CHARS = 200  # of a dropped record, before it is cut to the line
_CHANGE_CHARS, _BEFORE_CHARS = 20, 7  # of a mended text: in all, and before the place that changes
_TRIED_ROWS = 64  # of a batch, for an example that only one mend changes
_LINE_COLUMNS = 112


@dataclass
class _Tally:
    """Records by what a step would do to them, and the first of each."""

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, what: str, num: int) -> None:
        self.counts[what] = self.counts.get(what, 0) + num


def show_cleaning(path: Path) -> str:
    """What ``clean`` would do, step by step. Raises DataError: the file's records are in no known format."""
    seen = recognise(str(path))
    if seen.detection is None:
        raise DataError(f"{path}: its records are in no known format: {seen.fields()}.")
    kind = seen.detection.kind
    spec = ShapeSpec(seen.detection.format, kind, seen.detection.columns)
    steps, absent = _steps(kind)
    drops, mends = ({step.name: _Tally() for step in steps} for _ in range(2))
    num_records = num_rejects = 0
    for rows in read(seen.piece, limit=SAMPLE_RECORDS):
        shaped = shape(rows, 0, spec)
        num_records += shaped.batch.num_rows
        num_rejects += len(rows.rejects) + len(shaped.rejects)
        for step in steps if shaped.batch.num_rows else ():
            _judge(shaped.batch, kind, step, (drops[step.name], mends[step.name]))
    head = f"{path}: {num_records:,} {kind} records" + (
        f", {num_rejects:,} more do not fit" if num_rejects else ""
    )
    notes = [f"Not tried: {name}: {why}" for name, why in absent.items()]
    notes.append(
        "Each step alone with its defaults, records that do not fit left out. Switch one on with `clean:` in a recipe."
    )
    lines = [line for name in drops for line in _lines(name, drops[name], mends[name], num_records)]
    return render(Text(head), *lines, *(Text(note, SOFT) for note in notes))


def _steps(kind: RecordKind) -> tuple[list[Step], dict[str, str]]:
    """The steps that look at records of a kind, and those that cannot run here."""
    steps: list[Step] = []
    absent: dict[str, str] = {}
    for name, options in STEPS.items():
        step = Step(name, options())
        try:
            require([step])
        except RecipeError as error:
            absent[name] = str(error)
            continue
        if kind in _ONLY.get(name, (kind,)):
            steps.append(step)
    return steps, absent


def _judge(batch: pa.RecordBatch, kind: RecordKind, step: Step, tallies: tuple[_Tally, _Tally]) -> None:
    drops, mends = tallies
    cleaned = clean(batch, kind, [step])
    ordinals = batch.column("record")
    for row, reason in cleaned.dropped.items():
        drops.add(reason, 1)
        if reason not in drops.examples:
            text = texts(batch.slice(row, 1), kind)[0].as_py()
            drops.examples[reason] = f"record {ordinals[row]}: {_line(text[:_SHOWN_CHARS])}"
    for what, num in cleaned.fixed.items():
        if num:
            mends.add(what, num)
    if any(what not in mends.examples for what in mends.counts):
        _find_examples(batch, kind, step, mends)


def _find_examples(batch: pa.RecordBatch, kind: RecordKind, step: Step, mends: _Tally) -> None:
    """The first record that each mend alone changes: ``record 3: before → after``, at the first place that differs."""
    before, after = texts(batch, kind), texts(clean(batch, kind, [step]).batch, kind)
    rows = pc.indices_nonzero(pc.fill_null(pc.not_equal(before, after), False)).to_pylist()
    for row in rows[:_TRIED_ROWS]:
        made = [what for what, num in clean(batch.slice(row, 1), kind, [step]).fixed.items() if num]
        if len(made) == 1 and made[0] not in mends.examples:
            change = _change(before[row].as_py(), after[row].as_py())
            mends.examples[made[0]] = f"record {batch.column('record')[row]}: {change}"


def _change(old: str, new: str) -> str:
    same = next(
        (i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new))
    )
    start = max(same - _BEFORE_CHARS, 0)
    return f"{_line(old[start : start + _CHANGE_CHARS])} → {_line(new[start : start + _CHANGE_CHARS])}"


def _line(text: str) -> str:
    return visible(" ".join(text.split()))


def _lines(name: str, drops: _Tally, mends: _Tally, num_records: int) -> list[Text]:
    """What one step would do, the most frequent first."""
    lines = [Text(name, HEAD)]
    for verb, style, tally in (("drop", GONE, drops), ("mend", NEW, mends)):
        for what, num in sorted(tally.counts.items(), key=lambda item: (-item[1], item[0])):
            line = Text(f"  {verb} ", style)
            line.append(f"{what.removeprefix(name + '_') if what != name else '':22s}", style)
            line.append(f"{num:>8,}{num / max(num_records, 1):>8.1%}   ")
            line.append(tally.examples.get(what, ""), SOFT)
            line.truncate(_LINE_COLUMNS, overflow="ellipsis")
            lines.append(line)
    if len(lines) == 1:
        lines[0].append("  nothing", SOFT)
    return lines
