"""What a file holds, from a sample of its rows: the format that fits the most of them.

Recognition never guesses between near things: a sample of which less than half fits one format is nobody's format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datamix.records import RecordKind
from datamix.shape.catalogue import FORMATS
from datamix.shape.columns import renamer
from datamix.shape.draft import Row

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
    """A format, the kind its rows are by themselves, and the column map where fields have other names."""

    format: str
    kind: RecordKind
    columns: tuple[tuple[str, str], ...] = ()


def detect(values: Sequence[Any], columns: tuple[tuple[str, str], ...] = ()) -> Detection | None:
    """The format of a sample of rows (a few hundred), read through ``columns`` where given; None: nobody's format."""
    rows = [{"text": v} if isinstance(v, str) else v for v in values]
    rows = [row for row in rows if isinstance(row, dict)]
    if not rows or 2 * len(rows) < len(values):
        return None
    if columns:
        return _best(rows, columns)
    found = _best(rows, ())
    for names in _NAMES:
        if found is not None:
            break
        if all(any(row.get(theirs) is not None for row in rows) for _, theirs in names):
            found = _best(rows, names)
    return found


def _best(rows: list[Row], columns: tuple[tuple[str, str], ...]) -> Detection | None:
    rename = renamer(columns)
    named = rows if rename is None else [rename(row) for row in rows]
    counts = {name: sum(format.fits(row) for row in named) for name, format in FORMATS.items()}
    name = max(counts, key=counts.__getitem__)  # the first of equals
    if 2 * counts[name] < len(rows) or not counts[name]:
        return None
    return Detection(name, FORMATS[name].kinds[0], columns)
