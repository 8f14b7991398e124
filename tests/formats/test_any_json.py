"""Whatever JSON a file holds: every row is a record or a reject, and nothing crashes."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from datamix.core.contracts import Rows
from datamix.formats import RECORD_FORMATS, ShapeSpec, detect, shape

FIELDS = sorted(
    set().union(*(format.fields for format in RECORD_FORMATS.values())) | {"rewards_x", "instances"}
)
TURN_FIELDS = [
    "role",
    "content",
    "from",
    "value",
    "tool_calls",
    "function_call",
    "loss",
    "loss_weight",
    "name",
]
TURN_FIELDS += ["action", "observation", "kind", "args", "thought", "tool_call_metadata", "model_response"]
TURN_FIELDS += [
    "choices",
    "message",
    "summary",
    "functionCall",
    "functionResponse",
    "parts",
    "input",
    "tools",
]
TURN_FIELDS += ["system_prompt", "llm_message", "step_number", "task", "plan", "model_output", "observations"]
TURN_FIELDS += ["tool_call", "error", "human", "Assistant", "query", "answer", "function_declarations", "id"]
TURN_FIELDS += [
    "reasoning_content",
    "tool_call_id",
    "type",
    "text",
    "function",
    "arguments",
    "output",
    "score",
]
WORDS = [
    "user",
    "assistant",
    "system",
    "tool",
    "human",
    "gpt",
    "function_call",
    "text",
    "",
    "[",
    "[{}]",
    "{}",
]
WORDS += [
    "SystemPromptEvent",
    "MessageEvent",
    "ActionEvent",
    "ObservationEvent",
    "reasoning",
    "function_call_output",
]
WORDS += [
    "tool_use",
    "tool_result",
    "thinking",
    "message",
    "system",
    "run",
    "model_a",
    '["a"]',
    "病人：a",
    "病人",
    "q: a",
]
WORDS += [
    "\n\nHuman: a\n\nAssistant: b",
    '{"name": "f", "arguments": "{"}',
    "<think>",
    "true",
    "\ud800",
    "\x00",
]

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2**70, 0.5, math.nan, math.inf]),
    st.sampled_from(WORDS),
    st.text(max_size=3),
)
turns = st.dictionaries(st.sampled_from(TURN_FIELDS), leaves, max_size=5)
values = st.recursive(
    leaves | turns,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TURN_FIELDS), inner, max_size=4)
    ),
    max_leaves=8,
)
rows = st.dictionaries(st.sampled_from(FIELDS), values, max_size=6) | values


@settings(max_examples=400, deadline=None, database=None, derandomize=True)
@given(st.lists(rows, max_size=4), st.sampled_from(sorted(RECORD_FORMATS)), st.data())
def test_every_row_is_a_record_or_a_reject(found: list[Any], name: str, data: st.DataObject) -> None:
    num = len(found)
    detect(found)
    kind = data.draw(st.sampled_from(RECORD_FORMATS[name].kinds))
    columns = data.draw(st.sampled_from([(), (("messages", "prompt"),), (("turn.role", "name"),)]))
    spec = ShapeSpec(name, kind, columns, system="s", keep_meta=("*",), kwargs='{"a":1}')
    result = shape(Rows(found, list(range(num)), [None] * num, [b""] * num), 0, spec)
    result.batch.validate(full=True)
    shaped = set(result.batch.column("record").to_pylist())
    rejected = [reject.record for reject in result.rejects]
    assert len(rejected) == len(set(rejected))
    assert shaped | set(rejected) == set(range(num))
    assert not shaped & set(rejected)
