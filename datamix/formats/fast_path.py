"""The fast path from lines of JSON to a batch of records, for rows that are plain texts; the same batch as ``shape`` makes.

pyarrow parses a chunk of lines into columns. Rows are grouped by their outline: which of the fields that the format
reads are missing, empty or text, and the role of each turn. What an outline means is asked once, of the reader that all
rows go through: it reads a row of that outline with a placeholder for every text, and if the record it makes is nothing
but turns whose contents are such placeholders, every row of that outline is that record with its texts. So there is
one definition of a format, and nothing here is specific to one. The formats in ``OPAQUE`` never examine a text that is
not empty, which is what makes a placeholder as good as the text; any other row (meta, tools, reasoning,
a row that does not fit) is left to ``shape``, and so is a chunk in which a line is not strict JSON. Cost: pyarrow's
parsing, and about as much again for the outlines and one copy of the texts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
from numpy.typing import NDArray

from datamix.core.arrays import offsets_from_lengths
from datamix.core.records import MESSAGE, ROLES, SCHEMAS
from datamix.formats.drafts import Draft, Unfit
from datamix.formats.registry import RECORD_FORMATS
from datamix.formats.to_records import MEDIA, ShapeSpec, row_reader

OPAQUE = frozenset({"sharegpt", "messages", "alpaca", "magpie", "prompt_completion", "question_answer"})
_MAX_BRACKETS = (
    4000  # opened in one line; pyarrow's parser recurses, and 16,000 levels overflow a small stack
)
_MAX_NESTED = 256  # list and struct types in a chunk's schema: records that nest deeper are rejected
_MAX_PLANS = 4096
_MAX_WORDS = 256  # of roles
_PATIENCE = 4  # chunks in vain before the fast path is left
_PLACEHOLDER = re.compile("\x01([0-9]+);")
_ABSENT, _EMPTY, _TEXT, _NO_ITEMS, _TURNS, _OTHER = range(6)  # what a field of a row holds


@dataclass(frozen=True)
class FieldPlan:
    """A record made of texts of its row: the roles of its turns, and which texts each turn's content joins."""

    roles: NDArray[np.int8]  # [num_turns] index into ROLES
    pieces: NDArray[np.int64]  # a field, after the fields a turn; -1 - c is constant c
    counts: NDArray[np.int32]  # [num_turns] how many of the pieces are each turn's


class _Outlines(NamedTuple):
    """The rows of a chunk: their outlines, and where their texts are."""

    keys: list[bytes]  # b"" where the row is left to ``shape``
    texts: pa.StringArray  # the constants, the fields column by column, the contents of all turns
    starts: NDArray[np.int64]  # [num_fields] the text of the first row
    turns: NDArray[np.int64]  # [num_rows] the content of each row's first turn


def together(quick: pa.RecordBatch, other: pa.RecordBatch) -> pa.RecordBatch:
    """Two batches of one chunk as one, by record."""
    if not other.num_rows:
        return quick
    parts, start = [], 0
    places = np.searchsorted(quick.column("record").to_numpy(), other.column("record").to_numpy())
    for row, place in enumerate(places.tolist()):
        parts += [quick.slice(start, place - start), other.slice(row, 1)]
        start = place
    parts.append(quick.slice(start))
    columns = [pa.concat_arrays([part.column(i) for part in parts]) for i in range(quick.num_columns)]
    return pa.RecordBatch.from_arrays(columns, schema=quick.schema)


class FastPath:
    """Takes chunks of lines; remembers the outlines it met."""

    def __init__(self, spec: ShapeSpec) -> None:
        self._spec = spec
        self._read = row_reader(spec)
        format = RECORD_FORMATS[spec.format]
        self._fields = sorted(format.fields | {theirs for _, theirs in spec.columns} | set(MEDIA))
        names = dict(spec.columns)
        self._role_keys = [names["turn.role"]] if "turn.role" in names else ["role", "from"]
        self._content_keys = [names["turn.content"]] if "turn.content" in names else ["content", "value"]
        self._words: dict[tuple[str, str, str], int] = {}  # role key, word, content key
        self._plans: dict[bytes, FieldPlan | None] = {}  # None: left to ``shape``
        self._constants = ("", spec.system or "")
        plain = spec.format in OPAQUE and spec.kind == "sft" and spec.media == "reject"
        self._patience = _PATIENCE if plain and not spec.keep_meta and spec.kwargs is None else 0

    def __call__(
        self, slice_index: int, lines: list[bytes], record: int
    ) -> tuple[pa.RecordBatch, list[int]] | None:
        """The records of ``lines``, the first of which is record ``record`` of the slice, and which lines are left out;
        None: read them all one by one."""
        table = _parsed(lines) if self._patience else None
        outlines = self._outlines(table) if table is not None else None
        keys = outlines.keys if outlines is not None else []
        if len(self._plans) > _MAX_PLANS:
            self._plans.clear()
        for key in set(keys) - self._plans.keys():
            self._plans[key] = self._plan(key) if key else None
        plans = [plan for key in keys if (plan := self._plans[key]) is not None]
        if outlines is None or 2 * len(plans) < len(lines):
            self._patience = max(self._patience - 1, 0)
            return None
        self._patience = _PATIENCE
        rows = np.array([row for row, key in enumerate(keys) if self._plans[key] is not None], np.int64)
        columns = [pa.array(np.full(len(rows), slice_index, np.int32)), pa.array(rows + record)]
        columns += [_messages(outlines, plans, rows), *(_no_texts(len(rows)) for _ in range(3))]
        batch = pa.RecordBatch.from_arrays(columns, schema=SCHEMAS["sft"])
        return batch, [row for row, key in enumerate(keys) if self._plans[key] is None]

    def _outlines(self, table: pa.RecordBatch) -> _Outlines | None:
        """The outlines of a chunk; None where it has too many role words."""
        states = np.full((table.num_rows, len(self._fields)), _ABSENT, np.uint8)
        parts: list[pa.Array] = [pa.array(self._constants, pa.string())]
        starts, num_texts = np.zeros(len(self._fields), np.int64), len(self._constants)
        turns = None
        for place, name in enumerate(self._fields):
            if name not in table.schema.names:
                continue
            column = table.column(name)
            is_turns = pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type)
            if is_turns and turns is None:
                turns = column
            states[:, place] = _states(column, is_turns and turns is column)
            if pa.types.is_string(column.type):
                parts.append(column)
                starts[place] = num_texts
                num_texts += table.num_rows
        keys = [row.tobytes() for row in states]
        bad = (states == _OTHER).any(axis=1)
        firsts = np.zeros(table.num_rows, np.int64)
        if turns is not None:
            codes = self._turns(turns.values)
            if codes is None:
                return None
            offsets = turns.offsets.to_numpy()
            contents, coded = codes
            ends = offsets.tolist()
            keys = [key + coded[ends[i] : ends[i + 1]].tobytes() for i, key in enumerate(keys)]
            unclear = offsets_from_lengths((coded == _OTHER << 8).astype(np.int64))
            bad |= unclear[offsets[1:]] > unclear[offsets[:-1]]
            parts.append(contents)
            firsts = num_texts + offsets[:-1].astype(np.int64)
        for row in np.flatnonzero(bad).tolist():
            keys[row] = b""
        return _Outlines(keys, pa.concat_arrays(parts), starts, firsts)

    def _turns(self, turns: pa.StructArray) -> tuple[pa.StringArray, NDArray[np.uint16]] | None:
        """The contents of turns, and a code for each: state of the content << 8 | word of the role."""
        names = [field.name for field in turns.type if turns.field(field.name).null_count < len(turns)]
        roles = [name for name in self._role_keys if name in names]
        keys = [name for name in self._content_keys if name in names]
        if not roles or not keys:
            return None
        role, content = turns.field(roles[0]), turns.field(keys[0])
        if not pa.types.is_string(role.type) or not pa.types.is_string(content.type):
            return None
        unclear = ~pc.is_valid(role).to_numpy(False) | ~pc.is_valid(turns).to_numpy(False)
        for name in set(names) - {roles[0], keys[0]}:
            unclear |= pc.is_valid(turns.field(name)).to_numpy(False)
        encoded = role.dictionary_encode()
        words = [
            self._words.setdefault((roles[0], word, keys[0]), len(self._words))
            for word in encoded.dictionary.to_pylist()
        ]
        if len(self._words) > _MAX_WORDS:
            return None
        places = encoded.indices.fill_null(0).to_numpy()
        codes = np.array([*words, 0], np.uint16)[places] | _states(content, False).astype(np.uint16) << 8
        codes[unclear] = _OTHER << 8
        return content, codes

    def _plan(self, key: bytes) -> FieldPlan | None:
        """Read a row of the outline with placeholders for its texts; None where the record is more than roles and texts."""
        num, words = len(self._fields), list(self._words)
        turns = []
        for turn, code in enumerate(np.frombuffer(key[num:], np.uint16).tolist()):
            role_key, word, content_key = words[code & 255]
            turns.append({role_key: word, content_key: _sample(code >> 8, num + turn)})
        row = {
            name: turns if state == _TURNS else _sample(state, place)
            for place, (name, state) in enumerate(zip(self._fields, key, strict=False))
            if state != _ABSENT
        }
        try:
            drafts = self._read(row)
        except Unfit:
            return None
        if len(drafts) != 1 or drafts[0] != Draft(drafts[0].turns):
            return None
        pieces: list[int] = []
        counts: list[int] = []
        for _, content, *rest in drafts[0].turns:
            names = [_PLACEHOLDER.fullmatch(part) for part in (content or "").split("\n")]
            if any(value is not None for value in rest):
                return None
            if content in self._constants:
                pieces.append(-1 - self._constants.index(content))
            elif None in names:
                return None
            else:
                pieces += [int(name[1]) for name in names if name is not None]
            counts.append(len(pieces) - sum(counts))
        roles = np.array([ROLES.index(turn[0]) for turn in drafts[0].turns], np.int8)
        return FieldPlan(roles, np.array(pieces, np.int64), np.array(counts, np.int32))


def _parsed(lines: list[bytes]) -> pa.RecordBatch | None:
    """The lines as columns, a row each; None where one of them is not an object of strict JSON on its own."""
    whole = b"\n".join(lines)
    for line in lines:
        # no object can go on over a line that ends with a brace into one that begins with a brace
        if not line.startswith(b"{") or not line.endswith(b"}"):
            return None
        if len(line) > 2 * _MAX_BRACKETS and line.count(b"[") + line.count(b"{") > _MAX_BRACKETS:
            return None
    try:
        if not whole.isascii():
            pa.array([whole], pa.binary()).cast(pa.string())
        table = pj.read_json(
            pa.BufferReader(whole), read_options=pj.ReadOptions(use_threads=False, block_size=len(whole) + 1)
        )
    except pa.ArrowInvalid:
        return None
    types = str(table.schema)
    if table.num_rows != len(lines) or types.count("<") > _MAX_NESTED:
        return None
    if "double" in types and (b"NaN" in whole or b"Inf" in whole):
        return None
    return table.combine_chunks().to_batches()[0]


def _states(column: pa.Array, is_turns: bool) -> NDArray[np.uint8]:
    """What each row of a column holds."""
    valid = pc.is_valid(column).to_numpy(False)
    if pa.types.is_string(column.type):
        filled, empty = _TEXT, _EMPTY
    elif pa.types.is_list(column.type):
        filled, empty = _TURNS if is_turns else _OTHER, _NO_ITEMS
    else:
        return np.where(valid, _OTHER, _ABSENT).astype(np.uint8)
    offsets = np.frombuffer(column.buffers()[1], np.int32)[: len(column) + 1]
    return np.where(valid, np.where(np.diff(offsets) > 0, filled, empty), _ABSENT).astype(np.uint8)


def _sample(state: int, place: int) -> str | list[Any] | None:
    samples: dict[int, str | list[Any]] = {_EMPTY: "", _TEXT: f"\x01{place};", _NO_ITEMS: []}
    return samples.get(state)


def _messages(outlines: _Outlines, plans: list[FieldPlan], rows: NDArray[np.int64]) -> pa.ListArray:
    """The conversations of all rows; the pieces of a content are lines of it."""
    num_fields = len(outlines.starts)
    pieces = np.concatenate([plan.pieces for plan in plans])
    row = np.repeat(rows, [len(plan.pieces) for plan in plans])
    of_field = outlines.starts[np.clip(pieces, 0, num_fields - 1)] + row
    of_turn = outlines.turns[row] + pieces - num_fields
    places = np.where(pieces < num_fields, of_field, of_turn)
    contents = _take(outlines.texts, np.where(pieces < 0, -1 - pieces, places))
    counts = np.concatenate([plan.counts for plan in plans])
    if len(counts) != len(pieces):
        lists = pa.ListArray.from_arrays(pa.array(offsets_from_lengths(counts, np.int32)), contents)
        joined = pc.binary_join(lists, "\n")
        contents = pa.StringArray.from_buffers(len(joined), *joined.buffers()[1:])
    roles = np.concatenate([plan.roles for plan in plans])
    columns = [_take(pa.array(ROLES), roles), contents, *(_no_texts(len(roles)) for _ in range(4))]
    turns = pa.StructArray.from_arrays(
        [*columns, pa.nulls(len(roles), MESSAGE.field("train").type)], fields=list(MESSAGE)
    )
    offsets = offsets_from_lengths([len(plan.roles) for plan in plans], np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), turns)


def _take(texts: pa.StringArray, places: NDArray[Any]) -> pa.StringArray:
    """Texts by their places, none of them null: without a bitmap, as ``shape`` builds them."""
    taken = texts.take(pa.array(places))
    return pa.StringArray.from_buffers(len(taken), *taken.buffers()[1:])


def _no_texts(count: int) -> pa.StringArray:
    valid, offsets, _ = pa.nulls(count, pa.string()).buffers()
    return pa.StringArray.from_buffers(count, offsets, pa.py_buffer(b""), valid, count)
