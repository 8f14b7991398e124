"""The format of a file, from a sample of its rows: the one that fits the most of them.

Recognition never guesses between near things: a sample of which less than half fits one format is in no known format.
Names of widely used sets are tried where the usual ones fit nothing; the answer is then the column map that a recipe
would hold (``init`` writes it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from datamix.core.records import RecordKind
from datamix.formats import instruct
from datamix.formats.drafts import ForeignRow, TurnNames
from datamix.formats.registry import LAST, RECORD_FORMATS
from datamix.formats.turns import PLAIN, ROLE_KEYS, role_of, turn_names

Columns = tuple[tuple[str, str], ...]

_NAMES: tuple[Columns, ...] = (  # our fields and those of widely used sets
    *(
        (("messages", name),)
        for name in ("conversation", "dialog", "dialogue", "turns", "chat", "utterances")
    ),
    (("messages", "contents"),),  # Gemini
    (("input", "context"),),  # dolly: instruction, context, response
    (("instruction", "question"), ("output", "response")),  # OpenOrca
    (("instruction", "query"), ("output", "response")),  # ms-swift
    (("output", "target"),),  # BELLE
    (("instruction", "input"), ("output", "target")),  # Firefly
    (("instruction", "Question"), ("output", "Response"), ("reasoning", "Complex_CoT")),  # medical-o1
    (("instruction", "input"), ("output", "content"), ("reasoning", "reasoning_content")),  # Chinese R1 110k
    (("instruction", "content"), ("output", "summary")),  # ADGEN
    (("instruction", "input"), ("output", "output")),
    (("instruction", "inputs"), ("output", "targets")),  # FLAN
    (("output", "completion"),),
    (("question", "query"),),
    (("chosen", "chosen_response"), ("rejected", "rejected_response")),  # Argilla
    (("chosen", "response_j"), ("rejected", "response_k")),  # Stack Exchange pairs
    (("question", "问"), ("answer", "答")),
    (("question", "问题"), ("answer", "答案")),
    (("question", "问题"), ("answer", "回答")),
    (("question", "human"), ("answer", "assistant")),
    (("question", "user"), ("answer", "assistant")),
    (("instruction", "指令"), ("input", "输入"), ("output", "输出")),
    *((("messages", name),) for name in ("data", "trajectory", "history")),  # UltraChat, agents
)
_ALIASES = (  # fields of which a reader takes the first: a mapped one is the only one
    frozenset({*instruct.PROMPTS}),
    frozenset({"completion", "response", "output"}),
    frozenset(instruct.REFERENCES),
    frozenset(instruct.CHATS),
    frozenset(instruct.SYSTEMS),
    frozenset({"label", "kto_tag"}),
    frozenset({"tools", "functions"}),
)


@dataclass(frozen=True)
class Detection:
    """A format, its native kind, and the column map where fields have other names."""

    format: str
    kind: RecordKind
    columns: Columns = ()


def detect(values: Sequence[Any], columns: Columns = ()) -> Detection | None:
    """The format of a sample of rows (a few hundred), read through ``columns`` where given; None: no known format."""
    rows = [{"text": v} if isinstance(v, str) else v for v in values]
    rows = [row for row in rows if isinstance(row, dict)]
    if not rows or 2 * len(rows) < len(values):
        return None
    specific = [name for name in RECORD_FORMATS if name not in LAST]
    if columns:
        return _best(rows, columns, specific) or _best(rows, columns, LAST)
    for names in _maps(rows):
        served = all(any(row.get(theirs) is not None for row in rows) for _, theirs in names)
        if served and (detection := _best(rows, names, specific)) is not None:
            return detection
        if not names and (detection := _best(rows, names, ("text",))) is not None:
            return detection  # before names that are only likely: a text beside them is the text
    return _best(rows, (), LAST) or _best(rows, next(islice(_maps(rows), 1, None)), LAST)


def _maps(rows: list[ForeignRow]) -> Iterator[Columns]:
    """No map, names that differ in case only, names of known sets."""
    yield ()
    known = set().union(*(format.fields for format in RECORD_FORMATS.values()))
    keys = {key for row in rows[:20] for key in row if isinstance(key, str)}
    yield tuple(sorted((k.lower(), k) for k in keys if k.lower() in known - keys))
    yield from _NAMES


def unknown_roles(rows: Sequence[Any]) -> tuple[str, list[str]] | None:
    """The first field of conversations whose role words are not known, and these words in their order."""
    words: dict[str, dict[str, None]] = {}
    for row in rows:
        for field, value in row.items() if isinstance(row, dict) else ():
            for turn in value if isinstance(value, list) else ():
                key = next(
                    (k for k in ROLE_KEYS if isinstance(turn, dict) and isinstance(turn.get(k), str)), None
                )
                if key is not None and role_of(turn, PLAIN) is None:
                    words.setdefault(str(field), {})[turn[key]] = None
    return next(((field, list(found)) for field, found in words.items()), None)


def _best(rows: list[ForeignRow], columns: Columns, formats: Sequence[str]) -> Detection | None:
    """The format that fits most rows, of those that read every mapped field; at least half of the rows."""
    rename = renamer(columns)
    named = rows if rename is None else [rename(row) for row in rows]
    if any(ours.startswith("turn.") for ours, _ in columns):
        named = [_with_plain_turns(row, turn_names(columns)) for row in named]
    mapped = {ours for ours, theirs in columns if theirs and "." not in ours}
    counts = {
        name: sum(format.fits(row) for row in named)
        for name in formats
        if mapped <= (format := RECORD_FORMATS[name]).fields
    }
    name = max(counts, key=counts.__getitem__, default="")  # the first of equals
    if not name or 2 * counts[name] < len(rows):
        return None
    return Detection(name, RECORD_FORMATS[name].kinds[0], columns)


def _with_plain_turns(row: ForeignRow, names: TurnNames) -> ForeignRow:
    """The row with turns of other names as ``{"role", "content"}``."""
    plain = dict(row)
    for field, value in row.items():
        if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
            content = names.content or "content"
            plain[field] = [{"role": role_of(turn, names), "content": turn.get(content)} for turn in value]
    return plain


def renamer(columns: Columns) -> Callable[[ForeignRow], ForeignRow] | None:
    """A function from rows with the file's names to rows with ours; None where nothing is renamed.

    A mapped field is read from there and nowhere else: neither under its plain name nor under another one of it.
    """
    pairs = tuple((ours, theirs) for ours, theirs in columns if "." not in ours)
    if not pairs:
        return None
    ours_of = {ours for ours, _ in pairs}
    hidden = ours_of | {theirs for _, theirs in pairs}
    hidden |= {name for names in _ALIASES for name in names if names & ours_of}

    def rename(row: ForeignRow) -> ForeignRow:
        named = {key: value for key, value in row.items() if key not in hidden}
        for ours, theirs in pairs:
            if theirs in row:
                named[ours] = row[theirs]
        return named

    return rename
