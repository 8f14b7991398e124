"""Small rows of every kind, as a build leaves them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from datamix.core.records import Kind
from datamix.exporters import SetInfo

EOS = 2
MakeInfo = Callable[..., SetInfo]
MakeRows = Callable[..., pa.RecordBatch]


@pytest.fixture
def make_info() -> MakeInfo:
    def make(kind: Kind = "pretrain", **changes: Any) -> SetInfo:
        plain = SetInfo(
            name="demo",
            kind=kind,
            packed=False,
            max_length=16,
            vocab_size=1000,
            eos_token_id=EOS,
            pad_token_id=0,
            sources=("general", "medical"),
            stages=("train",),
            tokenizer_folder="tokenizer",
            shares=(("general", 0.75), ("medical", 0.25)),
        )
        return replace(plain, **changes)

    return make


@pytest.fixture
def make_rows() -> MakeRows:
    """Rows of a set: documents of 3 to 8 tokens that end in EOS, two a row where packed; sft masks the first two."""

    def make(info: SetInfo, num_rows: int = 10, first: int = 0) -> pa.RecordBatch:
        rows = [_row(info, first + i, num_rows) for i in range(num_rows)]
        return pa.RecordBatch.from_pylist(rows, schema=info.schema)

    return make


def _row(info: SetInfo, place: int, num_rows: int) -> dict[str, Any]:
    source = int(place % 4 == 3)
    stage = info.stages[min(place * len(info.stages) // num_rows, len(info.stages) - 1)]
    row: dict[str, Any] = {"source": info.sources[source], "stage": stage}
    docs = [_tokens(info, place, d) for d in range(2 if info.packed else 1)]
    row["records"] = [
        {"file": source, "record": 2 * place + d, "start": 0, "length": len(doc)}
        for d, doc in enumerate(docs)
    ]
    if info.kind in ("pretrain", "sft"):
        masked = 2 if info.kind == "sft" else int(info.packed)
        labels = [[-100] * masked + doc[masked:] for doc in docs]
        row |= {"input_ids": list(chain(*docs)), "labels": list(chain(*labels))}
        row["attention_mask"] = [1] * len(row["input_ids"])
        row["position_ids"] = [i for doc in docs for i in range(len(doc))]
        row["seq_lengths"] = [len(doc) for doc in docs]
    else:
        row |= _words(place, docs[0])
    return {name: value for name, value in row.items() if name in info.schema.names}


def _words(place: int, doc: list[int]) -> dict[str, Any]:
    said = [{"role": "assistant", "content": f"好的 {place}"}]
    row: dict[str, Any] = {
        "prompt_ids": doc,
        "prompt": [{"role": "user", "content": f"what is {place}?\n问题"}],
        "chosen_completion_ids": [5, 6, EOS],
        "rejected_completion_ids": [7, EOS],
        "completion_ids": [5, EOS],
        "completion": said,
        "label": place % 2 == 0,
        "chosen": said,
        "rejected": [{"role": "assistant", "content": "不知道"}],
        "margin": 0.5 if place % 2 else None,
        "reference": f"答案 {place}" if place % 3 else None,
        "meta": json.dumps({"department": "内科"}, ensure_ascii=False),
    }
    return row


def _tokens(info: SetInfo, place: int, doc: int) -> list[int]:
    rng = np.random.Generator(np.random.PCG64([place, doc]))
    ids = rng.integers(3, info.vocab_size, size=int(rng.integers(2, 8)))
    return [*ids.tolist(), EOS]


@pytest.fixture
def bytes_below() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder: name -> bytes."""

    def read(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    return read
