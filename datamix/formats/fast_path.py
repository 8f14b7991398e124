"""The quick way from lines of JSON to a batch of records, for rows that are plain texts; the same batch as ``shape`` makes.

A line is cut into its stencil and its texts (``stencil``). What a stencil means is asked once, of the reader that all rows
go through: it reads the stencil with a name in every gap, and if the record it makes is nothing but turns whose contents
are such names, every line of that stencil is that record with its own texts. So there is one definition of a format,
so nothing here is specific to a format. The formats in ``OPAQUE`` never look inside a text that is not empty, which is what makes a name as
good as the text; anything else (a field that is kept, tools, reasoning, a row that does not fit, a broken line) gives None,
and the chunk goes the long way. Cost: a dictionary look-up a line and a few copies of the texts.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamix.core.kernels import Kernel
from datamix.core.records import MESSAGE, ROLES, SCHEMAS
from datamix.formats.drafts import Draft, ForeignRow, Unfit
from datamix.formats.kernels import BLOCK
from datamix.formats.to_records import ShapeSpec, row_reader

OPAQUE = frozenset(
    {"text", "sharegpt", "messages", "alpaca", "magpie", "prompt_completion", "question_answer"}
)
_MAX_DEPTH = 8  # of a stencil; far below the depth at which records are refused
_MAX_PLANS = 4096
_WORTH_BYTES = 4 << 20  # read before the kernel is loaded, or on a new machine compiled
_PATIENCE = 4  # chunks in vain before the quick way is left
_NAME = re.compile("\x01([0-9]+);")


@dataclass(frozen=True)
class FieldPlan:
    """A record made of texts of its line: the roles of its turns, and which texts each turn's content joins."""

    roles: NDArray[np.int8]  # [num_turns] index into ROLES
    pieces: NDArray[np.int64]  # the texts of all turns; -1 - c is constant c
    counts: NDArray[np.int32]  # [num_turns] how many of them are each turn's


class _Told(NamedTuple):
    """What the lines of a batch say: a plan each, and where its texts begin."""

    plans: list[FieldPlan]
    texts: pa.StringArray
    firsts: NDArray[np.int64]


def together(quick: pa.RecordBatch, other: pa.RecordBatch) -> pa.RecordBatch:
    """Two batches of one chunk as one, by record."""
    if not other.num_rows:
        return quick
    parts, taken = [], 0
    places = np.searchsorted(quick.column("record").to_numpy(), other.column("record").to_numpy())
    for row, place in enumerate(places.tolist()):
        parts += [quick.slice(taken, place - taken), other.slice(row, 1)]
        taken = place
    parts.append(quick.slice(taken))
    columns = [pa.concat_arrays([part.column(i) for part in parts]) for i in range(quick.num_columns)]
    return pa.RecordBatch.from_arrays(columns, schema=quick.schema)


class FastPath:
    """Takes chunks of lines; remembers the stencils it met."""

    num_bytes = 0  # offered in this process so far

    def __init__(self, spec: ShapeSpec) -> None:
        self._spec = spec
        self._plans: dict[bytes, FieldPlan | None] = {}
        self._constants = ("", spec.system or "")
        self._cut: LineMatcher | None = None
        plain = spec.format in OPAQUE and spec.kind in ("text", "sft")
        self._patience = _PATIENCE if plain and not spec.keep_meta and spec.kwargs is None else 0

    @cached_property
    def _read(self) -> Callable[[ForeignRow], list[Draft]]:
        return row_reader(self._spec)

    def __call__(
        self, slice_index: int, lines: list[bytes], record: int
    ) -> tuple[pa.RecordBatch, list[int]] | None:
        """The records of ``lines``, the first of which is record ``record`` of the slice, and which lines are left out;
        None: read them all one by one."""
        cut = self._cutter(lines)
        pieces = cut(lines) if cut is not None else None
        if pieces is None:
            return None
        plans = list(map(self._plan, pieces.stencils))
        kept = [place for place, plan in enumerate(plans) if plan is not None]
        if 2 * len(kept) < len(lines):
            self._patience -= 1
            return None
        self._patience = _PATIENCE
        told = _Told([plan for plan in plans if plan is not None], pieces.texts, pieces.firsts[kept])
        place = pa.array(np.full(len(kept), slice_index, np.int32))
        batch = self._batch([place, pa.array(np.array(kept, np.int64) + record)], told)
        return batch, [place for place, plan in enumerate(plans) if plan is None]

    def _cutter(self, lines: list[bytes]) -> LineMatcher | None:
        """What cuts, once so much was offered that loading it is worth it."""
        if not self._patience:
            return None
        FastPath.num_bytes += sum(map(len, lines))
        if self._cut is None and FastPath.num_bytes > _WORTH_BYTES:
            self._cut = LineMatcher(self._constants)
        return self._cut

    def _plan(self, stencil: bytes) -> FieldPlan | None:
        plan: FieldPlan | Literal[False] | None = self._plans.get(stencil, False)
        if plan is False:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[stencil] = self._new_plan(stencil)
        return plan

    def _new_plan(self, stencil: bytes) -> FieldPlan | None:
        head, *rest = stencil.split(MARK)
        named = b"".join([head, *(b'"\\u0001%d;"%b' % (i, part) for i, part in enumerate(rest))])
        try:
            row = orjson.loads(named)
            drafts = self._read(row) if row.__class__ is dict and not _is_deep(row) else []
        except (orjson.JSONDecodeError, Unfit):
            return None
        return _plan_of(drafts[0], self._constants) if len(drafts) == 1 else None

    def _batch(self, columns: list[pa.Array], told: _Told) -> pa.RecordBatch:
        num = len(told.plans)
        contents = _contents(told)
        if self._spec.kind == "text":
            columns = [*columns, contents, _no_texts(num)]
        else:
            columns = [*columns, _messages(contents, told.plans), *(_no_texts(num) for _ in range(3))]
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMAS[self._spec.kind])


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_MAX_DEPTH):
        children = (
            child for parent in level for child in (parent.values() if type(parent) is dict else parent)
        )
        level = [child for child in children if type(child) in (dict, list)]
    return bool(level)


def _plan_of(draft: Draft, constants: tuple[str, ...]) -> FieldPlan | None:
    """What a record read from a stencil is made of; None where it is more than texts."""
    if draft != Draft(draft.turns, text=draft.text):
        return None
    turns: Sequence[tuple[Any, ...]] = draft.turns or [("user", draft.text)]
    made = [_pieces(turn[1], constants) for turn in turns]
    if any(pieces is None for pieces in made) or any(any(turn[2:]) or False in turn[2:] for turn in turns):
        return None
    pieces = [piece for some in made for piece in some or ()]
    return FieldPlan(
        np.array([ROLES.index(turn[0]) for turn in turns], np.int8),
        np.array(pieces, np.int64),
        np.array([len(some or ()) for some in made], np.int32),
    )


def _pieces(content: str | None, constants: tuple[str, ...]) -> list[int] | None:
    if content in constants:
        return [-1 - constants.index(content)]
    names = [_NAME.fullmatch(part) for part in (content or "").split("\n")]
    return None if None in names else [int(name[1]) for name in names if name is not None]


def _contents(told: _Told) -> pa.StringArray:
    """The contents of all turns, one after another; the pieces of one are lines of it."""
    pieces = np.concatenate([plan.pieces for plan in told.plans])
    first = np.repeat(told.firsts, [len(plan.pieces) for plan in told.plans])
    texts = _taken(told.texts, np.where(pieces < 0, -1 - pieces, first + pieces))
    counts = np.concatenate([plan.counts for plan in told.plans])
    if len(counts) == len(pieces):
        return texts
    joined = pc.binary_join(pa.ListArray.from_arrays(_offsets(counts), texts), "\n")
    return pa.StringArray.from_buffers(len(joined), *joined.buffers()[1:])


def _messages(contents: pa.StringArray, plans: list[FieldPlan]) -> pa.ListArray:
    roles = np.concatenate([plan.roles for plan in plans])
    columns = [_taken(pa.array(ROLES), roles), contents]
    columns += [nulls(len(roles)) for nulls in (_no_texts, _no_texts, _no_texts, _no_texts, _no_flags)]
    turns = pa.StructArray.from_arrays(columns, fields=list(MESSAGE))
    return pa.ListArray.from_arrays(_offsets([len(plan.roles) for plan in plans]), turns)


def _taken(texts: pa.StringArray, places: NDArray[Any]) -> pa.StringArray:
    taken = texts.take(pa.array(places))
    return pa.StringArray.from_buffers(len(taken), *taken.buffers()[1:])


def _no_texts(count: int) -> pa.StringArray:
    valid, offsets, _ = pa.nulls(count, pa.string()).buffers()
    return pa.StringArray.from_buffers(count, offsets, pa.py_buffer(b""), valid, count)


def _no_flags(count: int) -> pa.BooleanArray:
    return pa.nulls(count, pa.bool_())


def _offsets(lengths: Sequence[int] | NDArray[np.int32]) -> pa.Array:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.array(offsets)


MARK = b"\x01"  # in a stencil, where a text was; outside strings no JSON has it
_cut = Kernel("formats", "cut", "cut")


class LineLayout(NamedTuple):
    """The lines of a chunk, cut."""

    stencils: list[bytes]  # b"" where the line needs a closer look
    texts: pa.StringArray  # the constants first, then the texts of all lines in their order
    firsts: NDArray[np.int64]  # [num_lines] the first text of each line


class LineMatcher:
    """Cuts chunk after chunk in the same memory: fresh pages from the system cost as much as the cutting."""

    def __init__(self, constants: tuple[str, ...]) -> None:
        self._constants = [constant.encode() for constant in constants]
        self._room: dict[str, NDArray[Any]] = {}

    def __call__(self, lines: list[bytes]) -> LineLayout | None:
        """Every line, none of which holds a newline; None where they are not UTF-8. The texts hold until the next call."""
        whole = b"\n".join([*lines, b" " * BLOCK])
        if not (whole.isascii() or _is_utf8(whole)):
            return None
        head = b"".join(self._constants)
        texts = self._of("texts", len(head) + len(whole) + BLOCK, np.uint8)
        texts[: len(head)] = np.frombuffer(head, np.uint8)
        offsets = self._of("offsets", len(whole) // 3 + len(self._constants) + 2, np.int32)
        offsets[: len(self._constants) + 1] = np.cumsum([0, *map(len, self._constants)])
        stencils = self._of("stencils", len(whole), np.uint8)
        ends = np.empty((len(lines) + 1, 2), np.int64)
        ends[0] = 0, len(self._constants)
        starts = np.cumsum([0, *(len(line) + 1 for line in lines)])
        _cut(np.frombuffer(whole, np.uint8), starts, texts, offsets, stencils, ends)
        stops, last = ends[:, 0].tolist(), int(ends[-1, 1])
        bare = stencils[: stops[-1]].tobytes()
        parts = [bare[start:stop] for start, stop in itertools.pairwise(stops)]
        stored = pa.py_buffer(offsets[: last + 1]), pa.py_buffer(texts[: offsets[last]])
        return LineLayout(parts, pa.StringArray.from_buffers(last, *stored), ends[:-1, 1])

    def _of(self, name: str, count: int, kind: type[np.generic]) -> NDArray[Any]:
        if name not in self._room or len(self._room[name]) < count:
            self._room[name] = np.empty(count + count // 4, kind)
        return self._room[name]


def _is_utf8(whole: bytes) -> bool:
    offsets = pa.py_buffer(np.array([0, len(whole)], np.int32))
    try:
        pa.StringArray.from_buffers(1, offsets, pa.py_buffer(whole)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
