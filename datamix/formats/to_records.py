"""Foreign rows to records: one pass over a chunk gives drafts and rejects, from which the columns are built once.

A row that does not fit is a reject with a reason, the field's path and its original bytes; it is never repaired. The
target kind may differ from the rows' native kind where that makes sense: a pair in an sft recipe is its prompt and
better answer, either of them in a prompt recipe is the prompt.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from datamix.core import contracts
from datamix.core.errors import RecipeError
from datamix.core.hashing import canonical
from datamix.core.records import RecordKind
from datamix.formats.detect import renamer
from datamix.formats.drafts import (
    Draft,
    ForeignRow,
    TurnNames,
    Unfit,
    json_text,
    named,
    parsed,
    record_batch,
    system,
)
from datamix.formats.registry import RECORD_FORMATS, Reader, RecordFormat, can_become
from datamix.formats.turns import last_answer, turn_names

MEDIA = ("images", "image", "videos", "video", "audios", "audio")
EVERYTHING = "*"  # in keep_meta: every field that the format does not read


@dataclass(frozen=True)
class ShapeSpec:
    """How to shape the rows of one source; ``kind`` is what the batch shall hold."""

    format: str
    kind: RecordKind
    columns: tuple[tuple[str, str], ...] = ()  # our name -> the file's
    system: str | None = None  # for records without a system turn
    keep_meta: tuple[str, ...] = ()  # fields carried along, by the file's names
    kwargs: str | None = None  # JSON object: chat_template_kwargs of the source
    media: Literal["reject", "keep"] = "reject"  # images, videos, audios beside the text: keep them in meta


def shape(rows: contracts.Rows, slice_index: int, spec: ShapeSpec) -> contracts.Shaped:
    """Shape a chunk of rows; the rejects do not include ``rows.rejects``.

    A row may give several records (scored answers, seed tasks): they share its ordinal. Raises RecipeError: the
    format is unknown, or its rows cannot become the asked kind.
    """
    read = _reader(spec)
    format = RECORD_FORMATS[spec.format]
    names, rename = turn_names(spec.columns), renamer(spec.columns)
    meta = _meta_reader(spec, format)
    records: list[int] = []
    drafts: list[Draft] = []
    metas: list[str | None] = []
    rejects: list[contracts.Reject] = []
    for index, value in enumerate(rows.values):
        try:
            row = {"text": value} if isinstance(value, str) and spec.format == "text" else value
            if row.__class__ is not dict:
                raise Unfit("not_object", "record", f"is {named(row)}, not an object")
            read_drafts = read(row if rename is None else rename(row), names)
        except Unfit as unfit:
            rejects.append(_reject(rows, index, unfit, spec))
            continue
        drafts += read_drafts
        records += [rows.records[index]] * len(read_drafts)
        metas += [meta(row) if meta else None] * len(read_drafts)
    _fill(drafts, spec)
    return _built(rows, slice_index, spec, (records, drafts, metas), rejects)


def row_reader(spec: ShapeSpec) -> Callable[[ForeignRow], list[Draft]]:
    """The records of one row, as ``shape`` makes them. The function raises Unfit, making it RecipeError."""
    read = _reader(spec)
    names, rename = turn_names(spec.columns), renamer(spec.columns)

    def records(row: ForeignRow) -> list[Draft]:
        drafts = read(row if rename is None else rename(row), names)
        _fill(drafts, spec)
        return drafts

    return records


def _reader(spec: ShapeSpec) -> Reader:
    """The format's reader for the asked kind, with the step from its native kind to that one. Raises RecipeError."""
    format = RECORD_FORMATS.get(spec.format)
    if format is None:
        raise RecipeError(
            f"format: {spec.format!r} is not a known format. Known: auto, {', '.join(RECORD_FORMATS)}."
        )
    if spec.kind in format.readers:
        return _checked(format.readers[spec.kind], spec.kind, spec.media)
    native = format.kinds[0]
    if not can_become(native, spec.kind):
        raise RecipeError(
            f"format: {spec.format} gives {native} records, which cannot be used as {spec.kind} records. "
            "Name the right format, or use the file in a recipe of that kind."
        )
    read = _checked(format.readers[native], native, spec.media)
    return _checked(lambda row, names: _become(read(row, names), spec.kind), spec.kind)


def _checked(read: Reader, kind: RecordKind, media: str = "keep") -> Reader:
    """The reader, refusing conversations without an answer, prompts without a question, and what is about an image."""
    if kind == "text":
        return read

    def checked(row: ForeignRow, names: TurnNames) -> list[Draft]:
        for field in MEDIA if media == "reject" else ():
            if row.get(field):
                raise Unfit(
                    "media",
                    field,
                    "is beside the text, and only text is trained; `media: keep` keeps it for text exports that hold it",
                )
        drafts = read(row, names)
        for draft in drafts:
            turns = draft.turns
            last = turns[-1][0] if turns else "system"
            if kind == "sft":
                if last != "assistant" and not any(turn[0] == "assistant" for turn in turns):
                    raise Unfit("no_answer", "messages", "has no assistant turn")
            elif last == "system":
                raise Unfit("no_prompt", "messages", "has no user turn before the answer")
            elif last == "assistant":
                raise Unfit("turn_order", "messages", "ends with an assistant turn where a prompt should end")
        return drafts

    return checked


def _become(drafts: list[Draft], kind: RecordKind) -> list[Draft]:
    """Pairs as conversations (prompt and better answer), or any records as prompts; without repetition, since
    several pairs of a row share a prompt and a better answer."""
    result: list[Draft] = []
    for draft in drafts:
        if kind == "prompt":
            turns = draft.turns if draft.chosen is not None else draft.turns[: last_answer(draft.turns)]
        elif draft.label is False:
            raise Unfit(
                "undesired", "label", "is false: the answer is a bad example, which an sft record cannot be"
            )
        else:
            turns = [*draft.turns, *(draft.chosen or [])]
        other = Draft(turns, tools=draft.tools, kwargs=draft.kwargs)
        if other not in result:
            result.append(other)
    return result


def _reject(rows: contracts.Rows, index: int, unfit: Unfit, spec: ShapeSpec) -> contracts.Reject:
    theirs = dict(spec.columns).get(unfit.field.split("[")[0].split(".")[0])
    where = f" (read from {theirs!r})" if theirs is not None else ""
    raw = rows.raws[index]
    if not raw:
        text = json_text(rows.values[index])
        try:  # what was read as bytes that are not UTF-8 are these bytes again
            raw = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raw = text.encode("utf-8", "surrogatepass")
    detail = f"{unfit.field} {unfit.problem}{where}"
    return contracts.Reject(rows.records[index], rows.lines[index], unfit.reason, detail, raw)


def _meta_reader(spec: ShapeSpec, format: RecordFormat) -> Callable[[ForeignRow], str | None] | None:
    """A function from a row to the JSON object of the fields in ``keep_meta``; None where there are none."""
    keep = spec.keep_meta + (MEDIA if spec.media == "keep" and spec.kind != "text" else ())
    if not keep:
        return None
    named = dict(spec.columns)
    read = {named.get(field, field) for field in format.fields}
    everything = EVERYTHING in keep

    def meta(row: ForeignRow) -> str | None:
        fields = (
            [key for key in row if key not in read] if everything else [key for key in keep if key in row]
        )
        values: dict[str, Any] = {}
        for key in fields:
            if key == "meta" and isinstance(row[key], dict):
                values.update(row[key])
            elif row[key] is not None:
                values[key] = row[key]
        return json_text(values) if values else None

    return meta


def _fill(drafts: list[Draft], spec: ShapeSpec) -> None:
    """Give every draft the source's system text and template arguments where it has none."""
    if spec.kind == "text":
        return
    if spec.system is not None:
        head = system(spec.system)
        for draft in drafts:
            if not draft.turns or draft.turns[0][0] != "system":
                draft.turns = [head, *draft.turns]
    if spec.kwargs is not None:
        common = parsed(spec.kwargs, "chat_template_kwargs", "kwargs")
        for draft in drafts:
            specific = parsed(draft.kwargs, "chat_template_kwargs", "kwargs") if draft.kwargs else {}
            draft.kwargs = canonical({**common, **specific})


def _built(
    rows: contracts.Rows,
    slice_index: int,
    spec: ShapeSpec,
    shaped: tuple[list[int], list[Draft], list[str | None]],
    rejects: list[contracts.Reject],
) -> contracts.Shaped:
    """The batch; where a text cannot be UTF-8 (a lone surrogate), without the records that hold one."""
    try:
        return contracts.Shaped(record_batch(spec.kind, slice_index, *shaped), rejects)
    except UnicodeEncodeError:
        bad = set()
    for record, draft, meta in zip(*shaped, strict=True):
        try:
            record_batch(spec.kind, 0, [record], [draft], [meta])
        except UnicodeEncodeError:
            bad.add(record)
    places = {record: i for i, record in enumerate(rows.records)}
    rejects = [
        *rejects,
        *(_reject(rows, places[r], _not_text(rows.values[places[r]]), spec) for r in bad),
    ]
    rejects.sort(key=lambda reject: reject.record)
    good = [row for row in zip(*shaped, strict=True) if row[0] not in bad]
    columns = [list(column) for column in zip(*good, strict=True)] if good else [[], [], []]
    return contracts.Shaped(record_batch(spec.kind, slice_index, *columns), rejects)


def _not_text(row: Any) -> Unfit:
    """Why a row cannot be UTF-8: the first of its fields that holds a lone surrogate, or bytes in the place of text."""
    for field, value in row.items() if isinstance(row, dict) else [("record", row)]:
        surrogates = re.findall("[\ud800-\udfff]", json_text(value))
        if surrogates:
            if all("\udc80" <= character <= "\udcff" for character in surrogates):
                return Unfit("utf8", field, "holds bytes that are not UTF-8")
            return Unfit("surrogate", field, "holds a lone surrogate, which is not text")
    return Unfit("surrogate", "record", "holds a lone surrogate, which is not text")
