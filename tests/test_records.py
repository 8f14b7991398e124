from __future__ import annotations

import pyarrow as pa

from datamix.core.records import SCHEMAS, identity_texts, texts


def test_a_turn_without_any_words_keeps_its_place() -> None:
    rows = [
        {
            "slice": 0,
            "record": 0,
            "messages": [
                {"role": "user", "content": None},
                {"role": "assistant", "content": "答", "reasoning": "想", "tool_calls": "[]"},
            ],
        },
        {"slice": 0, "record": 1, "messages": [{"role": "user", "content": "x"}]},
    ]
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMAS["sft"])
    assert texts(batch, "sft").to_pylist() == ["\x1e想\x1f答\x1f[]", "x"]
    assert len(identity_texts(batch, "sft")) == 2
