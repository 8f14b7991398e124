"""The real files: what each is recognised as, and how many records it gives."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest

from datamix.core.contracts import Rows
from datamix.formats import ShapeSpec, detect, shape

SHARED = Path(__file__).parents[3] / "shared" / "data"

FILES = [  # glob, format, kind, rows, records, reasons
    ("sft_general/*/alpaca_en_demo.json", "alpaca", "sft", 999, 999, []),
    ("sft_general/*/alpaca_zh_demo.json", "alpaca", "sft", 1000, 1000, []),
    ("sft_general/*/identity.json", "alpaca", "sft", 91, 91, []),
    ("sft_general/*/glaive_toolcall_en_demo.json", "sharegpt", "sft", 300, 300, []),
    ("sft_general/*/glaive_toolcall_zh_demo.json", "sharegpt", "sft", 300, 300, []),
    ("sft_general/*/glaive_toolcall_zh_demo.jsonl", "sharegpt", "sft", 300, 300, []),
    ("sft_general/*/v1_sft_demo.jsonl", "messages", "sft", 500, 500, []),
    ("sft_general/*/reason_tool_use_demo_50.jsonl", "messages", "sft", 50, 50, []),
    ("sft_general/*/sharegpt_zh_1K_format.jsonl", "sharegpt", "sft", 1000, 999, ["no_answer"]),
    ("sft_general/*/seed_tasks.jsonl", "self_instruct", "sft", 175, 175, []),
    ("sft_domain/*/medical_sft_1K_format.jsonl", "sharegpt", "sft", 1000, 1000, []),
    ("sft_domain/*/sample.jsonl", "question_answer", "sft", 32, 32, []),
    ("sft_domain/*/*.csv", "question_answer", "sft", 7644, 7644, []),
    ("preference/*/dpo_en_demo.json", "ranking", "preference", 300, 300, []),
    ("preference/*/dpo_zh_demo.json", "ranking", "preference", 300, 300, []),
    ("preference/*/kto_en_demo.json", "kto", "preference", 300, 300, []),
    ("preference/*/v1_dpo_demo.jsonl", "paired_messages", "preference", 10, 10, []),
    ("preference/*/dpo_zh_500.jsonl", "medicalgpt", "preference", 500, 500, []),
    ("preference/*/toolcall_dpo_zh_demo.jsonl", "medicalgpt", "preference", 11, 11, []),
    ("preference/*/test.jsonl.gz", "hh_rlhf", "preference", 2312, 2312, []),
    ("magpie/*/example_instructions.jsonl", "prompt", "prompt", 5, 5, []),
    ("magpie/*/example_instructions_5res.json", "magpie", "sft", 5, 25, []),
    ("magpie/*/example_instructions_5res_armorm.json", "magpie_scored", "preference", 5, 20, []),
    ("neardup/*/redpajama-cc-2023-06-refined.jsonl", "text", "text", 10, 10, []),
]


def values(path: Path) -> list[Any]:
    raw = path.read_bytes()
    if path.suffix == ".gz":
        raw = gzip.decompress(raw)
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(raw.decode("gb18030", errors="replace"))))
    try:
        return json.loads(raw)  # type: ignore[no-any-return]
    except ValueError:
        return [json.loads(line) for line in raw.split(b"\n") if line.strip()]


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real corpora are not beside the checkout")
@pytest.mark.parametrize(("glob", "format", "kind", "num_rows", "num_records", "reasons"), FILES)
def test_a_real_file_is_recognised_and_shaped(
    glob: str, format: str, kind: Any, num_rows: int, num_records: int, reasons: list[str]
) -> None:
    (path,) = SHARED.glob(glob)
    found_values = values(path)
    assert len(found_values) == num_rows
    found = detect(found_values[:200])
    assert found is not None
    assert (found.format, found.kind) == (format, kind)
    rows = Rows(found_values, list(range(num_rows)), [None] * num_rows, [b""] * num_rows)
    result = shape(rows, 0, ShapeSpec(found.format, found.kind, found.columns))
    result.batch.validate(full=True)
    assert result.batch.num_rows == num_records
    assert [reject.reason for reject in result.rejects] == reasons
