"""Documents that are longer than a block, from recipe to rows."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small import TOKENIZER, write_jsonl

from datamix.audit import verify
from datamix.jobs.build import build
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe


@pytest.mark.parametrize("pack", ["none", "best_fit", "concat"])
@pytest.mark.parametrize("overlong", ["split", "drop"])
def test_long_documents_are_split_or_dropped_as_asked(pack: str, overlong: str, tmp_path: Path) -> None:
    texts = [{"text": f"Document {i}. " + "More words follow here. " * (i % 40)} for i in range(120)]
    write_jsonl(tmp_path / "texts.jsonl", texts)
    value = {
        "name": "long",
        "kind": "pretrain",
        "tokenizer": str(TOKENIZER),
        "sources": {"all": {"path": "texts.jsonl"}},
        "encode": {"max_length": 64, "pack": pack, "overlong": overlong},
    }
    out = tmp_path / "out"
    manifest = build(Recipe.of(value, tmp_path), Options(out, tmp_path / "cache", workers=1))
    assert [check.name for check in verify(out) if not check.ok] == []
    dropped = manifest["sources"]["all"]["dropped_by"]
    pieces = [p for row in pq.read_table(out / "train")["records"].to_pylist() for p in row]
    if overlong == "split":
        assert dropped == {}
        assert {p["record"] for p in pieces} == set(range(120))
    else:
        assert dropped["overlong"] > 30
        assert len({p["record"] for p in pieces}) == 120 - dropped["overlong"]
    if overlong == "drop" and pack != "concat":
        assert len(pieces) == 120 - dropped["overlong"]
