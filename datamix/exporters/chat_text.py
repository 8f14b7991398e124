"""Records as text in the forms that trainers read: messages of templates, OpenAI messages, ShareGPT turns, plain text.

Turns come as they are stored (``records.MESSAGE``: calls as JSON text, nulls where there is nothing). What a form has no place
for is put into the text in the form's usual notation: reasoning as a leading ``<think>`` block, calls beside text as
``<tool_call>`` blocks; ``datamix build`` reads both back. Where a trainer would train something else than our tokens, or drop
the record, it becomes a ``LeftOut`` with a reason, is counted, and the folder claims no ratio.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from datamix.core.errors import DataError
from datamix.exporters.export_format import LeftOut, RecordSource, SetInfo

Message = dict[str, Any]
_FETCH_RECORDS = 1024  # records in memory as Python objects at once
_FROM = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


class Talk(NamedTuple):
    """A conversation of a set: its record, its turns as they are stored, and its tool definitions."""

    file: int
    record: int
    turns: list[Message]
    tools: list[Any]
    media: dict[str, list[Any]]  # images, videos, audios, where there are some

    def left_out(self, reason: str) -> LeftOut:
        """What is noted instead of it."""
        return LeftOut(self.file, self.record, reason)

    @property
    def has_untrained_answer(self) -> bool:
        """Whether an answer is marked as not to be trained."""
        return any(turn.get("train") == 0 for turn in self.turns if turn["role"] == "assistant")


def talks(batch: pa.RecordBatch, records: RecordSource | None, info: SetInfo) -> Iterator[Talk | LeftOut]:
    """The conversations in these rows, in order; of a pair, its prompt and what was chosen.

    Answers that ``loss_on`` of the set leaves out are marked as not to be trained; a call of which a part is masked cannot
    be told from a whole one. Raises DataError where there is nothing to read the records from.
    """
    pieces = batch.column("records").flatten()
    files, numbers, starts = (
        pieces.field(n).to_numpy().astype(np.int64) for n in ("file", "record", "start")
    )
    for first in range(0, len(files), _FETCH_RECORDS):
        some = slice(first, first + _FETCH_RECORDS)
        fetched = _source(records).fetch_many(files[some], numbers[some])
        places = zip(files[some].tolist(), numbers[some].tolist(), starts[some].tolist(), strict=True)
        for (file, number, start), record in zip(places, fetched, strict=True):
            if start:
                yield LeftOut(file, number, "cut")
                continue
            turns = [*record["messages"], *(record.get("chosen") or [])]
            if info.mask and any(turn.get("tool_calls") and turn.get("train") != 0 for turn in turns):
                yield LeftOut(file, number, "masked_calls")
                continue
            yield Talk(file, number, _flagged(turns, info.loss_on), tools_of(record), _media(record))


def _flagged(turns: list[Message], loss_on: str) -> list[Message]:
    """Turns with the answers marked that ``loss_on`` does not train."""
    if loss_on not in ("last_assistant", "final_answer"):
        return turns
    answers = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
    finals = [i for i in answers if loss_on == "last_assistant" or not turns[i].get("tool_calls")]
    return [t | {"train": 0.0} if i in answers and i not in finals[-1:] else t for i, t in enumerate(turns)]


def piece_texts(batch: pa.RecordBatch, records: RecordSource | None) -> Iterator[str]:
    """The text of every piece in these rows, in order: of a cut document the stretch that the piece holds.

    A piece that is nothing but an end token has no text.

    Raises DataError where there is nothing to read it from, or a record is a conversation, which is no plain text.
    """
    pieces = batch.column("records").flatten()
    columns = [pieces.field(n).to_numpy().astype(np.int64) for n in ("file", "record", "start", "length")]
    for first in range(0, len(pieces), _FETCH_RECORDS):
        for text in _source(records).piece_texts(*(c[first : first + _FETCH_RECORDS] for c in columns)):
            if text is None:
                raise DataError(
                    "this format holds plain text, and a source of the set holds conversations, which a chat template made "
                    "into tokens; write a format of tokens (parquet, arrow, megatron, ...), or leave that source out"
                )
            if text:
                yield text


def _source(records: RecordSource | None) -> RecordSource:
    if records is None:
        raise DataError(
            "this format holds text, and the set holds tokens: its prepared records are no longer in the cache. "
            "Build the set again with this format among `write:`"
        )
    return records


def answers(batch: pa.RecordBatch) -> Iterator[tuple[Talk, dict[str, Any]]]:
    """Rows of pairs, labelled completions or prompts: the prompt, and all columns of the row but its tokens."""
    names = [n for n in batch.schema.names if not n.endswith("_ids")]
    for row in batch.select(names).to_pylist():
        place = row["records"][0]
        yield Talk(place["file"], place["record"], row["prompt"], tools_of(row), _media(row)), row


def meta_column(batch: pa.RecordBatch, name: str) -> pa.Array:
    """A field that the records carry in ``meta``, as text (JSON where it is no string); null where a record has none."""
    if "meta" not in batch.schema.names:
        return pa.nulls(len(batch), pa.string())
    values = [meta_of(text).get(name) for text in batch.column("meta").to_pylist()]
    return pa.array([v if v is None or isinstance(v, str) else _json(v) for v in values], pa.string())


def meta_of(text: str | None) -> dict[str, Any]:
    """The fields that a record carries."""
    fields: dict[str, Any] = json.loads(text) if text else {}
    return fields


def tools_of(record: dict[str, Any]) -> list[Any]:
    """Tool definitions of a record, empty where it has none."""
    tools: list[Any] = json.loads(record["tools"]) if record.get("tools") else []
    return tools


def _media(record: dict[str, Any]) -> dict[str, list[Any]]:
    """``{"image": "a.jpg"}`` in ``meta`` -> ``{"images": ["a.jpg"]}``."""
    fields = meta_of(record.get("meta"))
    media: dict[str, list[Any]] = {}
    for name in ("image", "video", "audio"):
        for value in (fields.get(name), fields.get(f"{name}s")):
            if value:
                media.setdefault(f"{name}s", []).extend(value if isinstance(value, list) else [value])
    return media


def with_media(batch: pa.RecordBatch, info: SetInfo) -> dict[int, LeftOut]:
    """Rows of pairs and prompts whose records carry images, videos or audios, for formats that cannot hold them."""
    if not info.media or info.kind not in ("preference", "prompt"):
        return {}
    return {i: talk.left_out("media") for i, (talk, _) in enumerate(answers(batch)) if talk.media}


def has_calls(turns: list[Message]) -> bool:
    """Whether a turn calls a tool, or is the result of one."""
    return any(turn.get("tool_calls") or turn["role"] == "tool" for turn in turns)


def template_messages(turns: list[Message]) -> list[Message]:
    """Messages as chat templates of transformers take them: calls with their arguments as objects, no empty fields."""
    out = []
    for turn in turns:
        message: Message = {"role": turn["role"]}
        if turn["content"] is not None:
            message["content"] = turn["content"]
        if turn.get("reasoning") is not None:  # templates name it in two ways
            message |= {"reasoning_content": turn["reasoning"], "thinking": turn["reasoning"]}
        if turn.get("tool_calls"):
            message["tool_calls"] = json.loads(turn["tool_calls"])
        out.append(message | {n: turn[n] for n in ("tool_call_id", "name") if turn.get(n)})
    return out


def text_turns(column: pa.Array) -> pa.Array:
    """A column of turns as role and content alone, reasoning before the content."""
    if column.type.value_type.num_fields == 2:
        return column
    lists = [
        [{"role": turn["role"], "content": thought_and_content(turn)} for turn in turns]
        for turns in column.to_pylist()
    ]
    return pa.array(lists, pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])))


def message_column(column: pa.Array) -> pa.Array:
    """A column of turns as trainers load it: role and content, or messages as JSON values where turns hold more."""
    if column.type.value_type.num_fields == 2:
        return column
    lists = [template_messages(turns) for turns in column.to_pylist()]
    texts = pa.array([_json(message) for messages in lists for message in messages], pa.string())
    offsets = np.cumsum([0, *map(len, lists)]).astype(np.int32)
    # without a type of JSON, a key of one call's arguments would come back as null in every other call
    return pa.ListArray.from_arrays(pa.array(offsets), pa.ExtensionArray.from_storage(pa.json_(), texts))


def openai_messages(turns: list[Message]) -> list[Message]:
    """Messages as OpenAI's chat format has them: arguments as JSON text, ids for calls, no empty fields."""
    out: list[Message] = []
    waiting: list[str] = []  # ids of calls that no tool has answered
    number = 0
    for turn in turns:
        message: Message = {"role": turn["role"], "content": thought_and_content(turn)}
        calls = _calls(turn)
        if calls:
            ids = [call.get("id") or f"call_{number + i}" for i, call in enumerate(calls)]
            number += len(calls)
            waiting += ids
            message["tool_calls"] = [
                {
                    "id": call_id,
                    "type": "function",
                    "function": {
                        "name": call["function"]["name"],
                        "arguments": _json(call["function"].get("arguments", {})),
                    },
                }
                for call, call_id in zip(calls, ids, strict=True)
            ]
            message["content"] = message["content"] or None
        if turn["role"] == "tool":
            answered = turn.get("tool_call_id") or (waiting[0] if waiting else "call_0")
            waiting = [i for i in waiting if i != answered]
            message["tool_call_id"] = answered
        if turn.get("name"):
            message["name"] = turn["name"]
        if turn.get("train") == 0:
            message["weight"] = 0
        out.append(message)
    return out


def sharegpt(turns: list[Message]) -> list[dict[str, str]]:
    """Turns as ``{"from", "value"}``: system, human, gpt, observation, and function_call for a turn of calls alone."""
    out = []
    for turn in turns:
        calls = [
            {"name": c["function"]["name"], "arguments": c["function"].get("arguments", {})}
            for c in _calls(turn)
        ]
        content = thought_and_content(turn)
        if calls and not turn.get("content"):
            out.append(
                {"from": "function_call", "value": content + _json(calls[0] if len(calls) == 1 else calls)}
            )
        else:
            blocks = [f"\n<tool_call>\n{_json(call)}\n</tool_call>" for call in calls]
            out.append({"from": _FROM[turn["role"]], "value": "".join([content, *blocks])})
    return out


def alternating(turns: list[dict[str, str]], answered: bool = True) -> list[dict[str, str]] | None:
    """ShareGPT turns as LLaMA-Factory and MedicalGPT take them: question (or result), answer (or call), in turn.

    Results of one turn's calls are joined as LLaMA-Factory joins them; what follows the last answer is cut off (not where
    ``answered`` is False: a prompt ends with a question). None where the turns are in another order: they would drop it.
    """
    joined: list[dict[str, str]] = []
    for turn in turns:
        if joined and turn["from"] == joined[-1]["from"] == "observation":
            value = f"{joined[-1]['value']}\n</tool_response>\n<tool_response>\n{turn['value']}"
            joined[-1] = joined[-1] | {"value": value}
        else:
            joined.append(turn)
    while answered and joined and joined[-1]["from"] in ("human", "observation"):
        joined.pop()
    talk = joined[1:] if joined and joined[0]["from"] == "system" else joined
    sides = (("human", "observation"), ("gpt", "function_call"))
    in_turn = all(turn["from"] in sides[i % 2] for i, turn in enumerate(talk))
    return joined if talk and in_turn and len(talk) % 2 == (not answered) else None


def thought_and_content(turn: Message) -> str:
    """The text of a turn, behind its reasoning as a ``<think>`` block."""
    content = turn.get("content") or ""
    if turn.get("reasoning"):
        return f"<think>\n{turn['reasoning']}\n</think>\n\n{content}"
    return str(content)


def _calls(turn: Message) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = json.loads(turn["tool_calls"]) if turn.get("tool_calls") else []
    return calls


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
