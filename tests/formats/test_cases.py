"""Real kinds of input beside the checkout: what each file of the cases is recognised as, and which of its records fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from datamix.core.contracts import Rows
from datamix.formats import ShapeSpec, shape
from datamix.pipeline.scan import recognise

CASES = Path(__file__).parents[3] / "shared" / "data" / "cases"
FILES = [  # file, format, records, reasons of rejects
    ("call_parameters_emptied/data.jsonl", "sharegpt", 5, []),
    ("odd_arguments/data.jsonl", "messages", 4, []),
    ("consecutive_tool_calls_split/data.jsonl", "messages", 1, []),
    ("tool_definitions_lost/data.jsonl", "messages", 2, []),
    ("loss_flags_ignored/data.jsonl", "messages", 1, ["loss_flag", "loss_flag"]),
    ("pref_explicit_prompt_ignored/data.jsonl", "preference", 1, ["different_prompts"]),
    ("object_with_one_array/data.json", "alpaca", 5, []),
    ("check_disagrees_with_build/data.jsonl", "messages", 6, []),
    ("ranked_answers/ranked_answers.json", "caregpt", 20, []),
    ("ranked_answers/prompt_response_pair.json", "caregpt", 20, []),
    ("unknown_shapes/adgen_chatglm.jsonl", "alpaca", 6, []),
    ("unknown_shapes/argilla_uf.jsonl", "medicalgpt", 6, []),
    ("unknown_shapes/belle.jsonl", "alpaca", 6, []),
    ("unknown_shapes/dolly.jsonl", "magpie", 6, []),
    ("unknown_shapes/firefly.jsonl", "messages", 6, []),
    ("unknown_shapes/medical_o1.jsonl", "alpaca", 6, []),
    ("unknown_shapes/openorca.jsonl", "alpaca", 6, []),
    ("unknown_shapes/swift_query.jsonl", "alpaca", 6, []),
    ("unknown_shapes/zh_r1_110k.jsonl", "alpaca", 6, []),
]


@pytest.mark.shared
@pytest.mark.skipif(not CASES.is_dir(), reason="the cases are not beside the checkout")
@pytest.mark.parametrize(("file", "format", "num_records", "reasons"), FILES)
def test_a_case_is_read(file: str, format: str, num_records: int, reasons: list[str]) -> None:
    seen = recognise(str(CASES / file))
    assert seen.detection is not None
    assert seen.detection.format == format
    num = len(seen.values)
    spec = ShapeSpec(format, seen.detection.kind, seen.detection.columns)
    shaped = shape(Rows(seen.values, list(range(num)), [None] * num, [b""] * num), 0, spec)
    assert (shaped.batch.num_rows, [reject.reason for reject in shaped.rejects]) == (num_records, reasons)
