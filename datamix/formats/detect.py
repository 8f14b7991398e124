"""The format of a file, from a sample of its rows: the one that fits the most of them.

Recognition never guesses between near things: a sample of which less than half fits one format is in no known format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datamix.core.records import RecordKind
from datamix.formats.drafts import ForeignRow
from datamix.formats.registry import RECORD_FORMATS

_NAMES = (  # other names of fields, tried when the plain ones fit nothing
    (("messages", "conversation"),),
    (("messages", "dialog"),),
    (("messages", "dialogue"),),
    (("question", "问"), ("answer", "答")),
    (("question", "问题"), ("answer", "答案")),
    (("question", "问题"), ("answer", "回答")),
    (("instruction", "指令"), ("input", "输入"), ("output", "输出")),
)


@dataclass(frozen=True)
class Detection:
    """A format, its native kind, and the column map where fields have other names."""

    format: str
    kind: RecordKind
    columns: tuple[tuple[str, str], ...] = ()


def detect(values: Sequence[Any], columns: tuple[tuple[str, str], ...] = ()) -> Detection | None:
    """The format of a sample of rows (a few hundred), read through ``columns`` where given; None: no known format."""
    rows = [{"text": v} if isinstance(v, str) else v for v in values]
    rows = [row for row in rows if isinstance(row, dict)]
    if not rows or 2 * len(rows) < len(values):
        return None
    if columns:
        return _best(rows, columns)
    candidates = ((), *_NAMES)
    for names in candidates:
        present = all(any(row.get(theirs) is not None for row in rows) for _, theirs in names)
        if present and (detection := _best(rows, names)) is not None:
            return detection
    return None


def _best(rows: list[ForeignRow], columns: tuple[tuple[str, str], ...]) -> Detection | None:
    rename = renamer(columns)
    named = rows if rename is None else [rename(row) for row in rows]
    counts = {name: sum(format.fits(row) for row in named) for name, format in RECORD_FORMATS.items()}
    name = max(counts, key=counts.__getitem__)  # the first of equals
    if 2 * counts[name] < len(rows) or not counts[name]:
        return None
    return Detection(name, RECORD_FORMATS[name].kinds[0], columns)


def renamer(columns: tuple[tuple[str, str], ...]) -> Callable[[ForeignRow], ForeignRow] | None:
    """A function from rows with the file's names to rows with ours; None where nothing is renamed."""
    pairs = tuple((ours, theirs) for ours, theirs in columns if "." not in ours)
    if all(ours == theirs for ours, theirs in pairs):
        return None
    mapped = {theirs for _, theirs in pairs} | {ours for ours, _ in pairs}

    def rename(row: ForeignRow) -> ForeignRow:
        named = {key: value for key, value in row.items() if key not in mapped}
        for ours, theirs in pairs:
            if theirs in row:
                named[ours] = row[theirs]
        return named

    return rename
