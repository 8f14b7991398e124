"""What a text format writes is detected and read back to the same records."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from datamix.core.contracts import Rows
from datamix.exporters import open_sink
from datamix.formats import ShapeSpec, detect, shape

TURN = dict.fromkeys(("content", "reasoning", "tool_calls", "tool_call_id", "name", "train"))
TALK = [
    TURN | {"role": "system", "content": "你是医生 and 2 < 3"},
    TURN | {"role": "user", "content": "头痛\n怎么办？"},
    TURN
    | {
        "role": "assistant",
        "content": "",
        "tool_calls": json.dumps(
            [{"type": "function", "function": {"name": "查", "arguments": {"q": "头痛", "n": 2}}}],
            ensure_ascii=False,
        ),
    },
    TURN | {"role": "tool", "content": '{"结果": "休息"}'},
    TURN | {"role": "assistant", "content": "休息。"},
    TURN | {"role": "user", "content": "thanks"},
    TURN | {"role": "assistant", "content": "不客气"},
]
TOOLS = [{"type": "function", "function": {"name": "查", "parameters": {"type": "object", "properties": {}}}}]


class Words:
    def __init__(self, record):
        self.record = record

    def fetch_many(self, files, records):
        return [self.record] * len(files)

    def piece_texts(self, files, records, starts, lengths):
        return [self.record["text"]] * len(files)


def read_back(values, kind):
    found = detect(values)
    assert found is not None
    rows = Rows(values, list(range(len(values))), [None] * len(values), [b""] * len(values))
    shaped = shape(rows, 0, ShapeSpec(found.format, kind, found.columns))
    assert shaped.rejects == []
    return shaped.batch.to_pylist()


def said(messages):
    """What was said, without names that a format gives out itself (ids of calls)."""
    out = []
    for message in messages:
        calls = json.loads(message["tool_calls"]) if message["tool_calls"] else []
        functions = [call["function"] for call in calls]
        out.append((message["role"], message["content"] or "", functions))
    return out


@pytest.mark.parametrize("name", ["openai", "medicalgpt", "ms-swift", "llamafactory"])
def test_conversations_with_calls_and_tools_come_back(make_info, make_rows, tmp_path, name):
    info = make_info("sft")
    record = {"messages": TALK, "tools": json.dumps(TOOLS, ensure_ascii=False), "kwargs": None, "meta": None}
    written = open_sink(name, (), info, "train", Words(record)).write([make_rows(info, 2)], 0, tmp_path)
    (text,) = [n for n in written if n.endswith(".jsonl")]
    values = [json.loads(line) for line in (tmp_path / text).read_text().splitlines()]
    for record_again in read_back(values, "sft"):
        assert said(record_again["messages"]) == said(TALK)
        assert json.loads(record_again["tools"]) == TOOLS


@pytest.mark.parametrize("name", ["medicalgpt", "nanochat", "llamafactory"])
def test_plain_texts_come_back(make_info, make_rows, tmp_path, name):
    info = make_info("pretrain")
    record = {"text": "第一行\n  second\t行 ", "meta": None}
    written = open_sink(name, (), info, "train", Words(record)).write([make_rows(info, 3)], 0, tmp_path)
    (text,) = [n for n in written if n.endswith((".jsonl", ".parquet"))]
    if text.endswith(".parquet"):
        values = pq.read_table(tmp_path / text).to_pylist()
    else:
        values = [json.loads(line) for line in (tmp_path / text).read_text().splitlines()]
    assert [again["text"] for again in read_back(values, "text")] == [record["text"]] * 3


@pytest.mark.parametrize("name", ["medicalgpt", "ms-swift", "llamafactory", "trl"])
def test_pairs_come_back(make_info, make_rows, tmp_path, name):
    info = make_info("preference")
    rows = make_rows(info, 3)
    written = open_sink(name, (), info, "train").write([rows], 0, tmp_path)
    (text,) = [n for n in written if n.endswith((".jsonl", ".parquet"))]
    if text.endswith(".parquet"):
        values = pq.read_table(tmp_path / text, columns=["prompt", "chosen", "rejected"]).to_pylist()
    else:
        values = [json.loads(line) for line in (tmp_path / text).read_text().splitlines()]
    for again, row in zip(read_back(values, "preference"), rows.to_pylist(), strict=True):
        for ours, theirs in (("messages", "prompt"), ("chosen", "chosen"), ("rejected", "rejected")):
            assert [(m["role"], m["content"]) for m in again[ours]] == [
                (m["role"], m["content"]) for m in row[theirs]
            ]
