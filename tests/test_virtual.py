"""Batches of a virtual set, straight from the cache, are those of the files that a real build writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import recipe, write_jsonl

import datamix

SFT: dict[str, Any] = {"encode": {"max_length": 48, "pack": "best_fit", "overlong": "truncate"}}
LOOSE: dict[str, Any] = {"encode": {"max_length": 48, "pack": "none", "overlong": "truncate"}}
DOCUMENTS = [{"text": f"第 {i} 篇。" + "A line of words, then more.\n" * (1 + i % 40)} for i in range(120)]
PRETRAIN: dict[str, Any] = {
    "kind": "pretrain",
    "sources": {
        "general": {"path": "general.txt.jsonl", "weight": 0.7},
        "medical": {"path": "medical.txt.jsonl", "weight": 0.3, "max_epochs": 3},
    },
    "dedupe": None,
}


@pytest.mark.parametrize(
    "changes",
    [
        SFT,
        LOOSE,
        PRETRAIN | {"encode": {"max_length": 64}},
        PRETRAIN | {"encode": {"max_length": 64, "pack": "concat"}},
    ],
    ids=["sft packed", "sft", "pretrain packed", "pretrain blocks"],
)
def test_batches_of_a_virtual_set_are_those_of_the_real_one(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_jsonl(tmp_path / "general.txt.jsonl", DOCUMENTS[:80])
    write_jsonl(tmp_path / "medical.txt.jsonl", DOCUMENTS[80:])
    cache = tmp_path / "cache"
    datamix.build(
        recipe(tmp_path, **changes, write=["parquet", "arrow"]), tmp_path / "real", cache=cache, workers=1
    )
    datamix.build(recipe(tmp_path, **changes, write=[]), tmp_path / "virtual", cache=cache, workers=1)
    real, virtual = datamix.open(tmp_path / "real"), datamix.open(tmp_path / "virtual", cache=cache)
    assert len(real) == len(virtual) > 10
    for how in ({}, {"packed": True, "pad_to_multiple_of": 16}):
        for want, got in zip(real.batches(7, **how), virtual.batches(7, **how), strict=True):
            assert list(want) == list(got)
            assert all(np.array_equal(want[name], got[name]) for name in want)


def test_a_virtual_set_knows_its_validation_rows_too(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    datamix.build(recipe(tmp_path, **SFT, write=[]), tmp_path / "virtual", cache=cache, workers=1)
    held = datamix.open(tmp_path / "virtual", "validation/general", cache=cache)
    (batch,) = held.batches(len(held))
    assert batch["input_ids"][0, : len(held[0]["input_ids"])].tolist() == held[0]["input_ids"].tolist()
