"""A small set on disk, as a build leaves it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamix.core.records import Kind, row_schema

MakeSet = Callable[..., Path]


@pytest.fixture
def make_set(tmp_path: Path) -> MakeSet:
    """A set of ``num_rows`` rows over two sources, 7 rows a file and 3 a row group; row i begins with token 1000 + i."""

    def make(
        num_rows: int = 40, kind: Kind = "sft", packed: bool = False, form: str = "parquet", name: str = "set"
    ) -> Path:
        folder = tmp_path / name
        schema = row_schema(kind, packed)
        rows = pa.RecordBatch.from_pylist([_row(i, kind, packed) for i in range(num_rows)], schema=schema)
        outputs = []
        for index, start in enumerate(range(0, num_rows, 7)):
            part = pa.Table.from_batches([rows.slice(start, 7)])
            path = folder / ("train" if form == "parquet" else "arrow/train") / f"{index:05d}.{form}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if form == "parquet":
                pq.write_table(part, path, row_group_size=3)
            else:
                with pa.OSFile(str(path), "wb") as raw, pa.ipc.new_stream(raw, schema) as writer:
                    writer.write_table(part, max_chunksize=3)
            outputs.append(
                {"path": str(path.relative_to(folder)), "format": form, "split": "train", "rows": len(part)}
            )
        manifest = {
            "name": "demo",
            "kind": kind,
            "seed": 42,
            "tokenizer": {"vocab_size": 5000, "eos_token_id": 2, "pad_token_id": 0},
            "outputs": outputs,
            "content_sha256": "ab" * 32,
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return make


def _row(i: int, kind: Kind, packed: bool) -> dict[str, Any]:
    source = ("general", "医学")[i % 2]
    row: dict[str, Any] = {"source": source, "stage": "train"}
    if kind not in ("sft", "pretrain"):
        return row | {
            "records": [],
            "prompt_ids": [1000 + i, 2],
            "prompt": [{"role": "user", "content": f"问题 {i}"}],
        }
    rng = np.random.Generator(np.random.PCG64(i))
    docs = [rng.integers(3, 900, size=int(rng.integers(3, 7))).tolist() for _ in range(2 if packed else 1)]
    docs[0][0] = 1000 + i
    ids = [token for doc in docs for token in doc]
    labels = [label for doc in docs for label in [-100, *doc[1:]]]
    row |= {"input_ids": ids, "labels": labels}
    row["records"] = [{"file": i % 2, "record": i, "start": 0, "length": len(doc)} for doc in docs]
    if packed:
        row["position_ids"] = [p for doc in docs for p in range(len(doc))]
        row["seq_lengths"] = [len(doc) for doc in docs]
    else:
        row["attention_mask"] = [1] * len(ids)
    return row
