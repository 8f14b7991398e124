"""Weights that change at a row of training: what was trained stays, what comes follows the new weights under the same caps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import recipe

import datamix
from datamix.core.errors import DataError, RecipeError
from datamix.jobs.build import sweep
from datamix.load import TrainingSet
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe


def built(tmp_path: Path) -> Path:
    made = recipe(tmp_path, mix={"unit": "records", "size": 300}, encode={"max_length": 256, "pack": "none"})
    datamix.build(made, tmp_path / "set", cache=tmp_path / "cache", workers=1)
    return tmp_path / "set"


def staged(tmp_path: Path, *stages: dict[str, Any]) -> None:
    """A set of 300 general and 200 medical records, one a row, mixed by ``stages``."""
    made = recipe(
        tmp_path,
        sources={"general": {"path": "general.jsonl"}, "medical": {"path": "medical.jsonl"}},
        mix={"unit": "records", "stages": list(stages)},
        encode={"max_length": 256, "pack": "none"},
        dedupe=None,
        validation=None,
    )
    datamix.build(made, tmp_path / "set", cache=tmp_path / "cache", workers=1)


def changed(tmp_path: Path, *changes: tuple[int, dict[str, float]]) -> TrainingSet:
    said = [{"row": row, "weights": weights} for row, weights in changes]
    return datamix.open(tmp_path / "set", cache=tmp_path / "cache", changes=said)


def identities(rows: TrainingSet) -> list[tuple[int, int]]:
    pieces = rows.rows.table(["records"], 0, len(rows)).column("records").to_pylist()
    return [(piece[0]["file"], piece[0]["record"]) for piece in pieces]


def test_rows_before_a_change_stay_and_rows_behind_it_follow_the_new_weights(tmp_path: Path) -> None:
    before = datamix.open(built(tmp_path))
    after = changed(tmp_path, (100, {"general": 0.4, "medical": 0.6}))
    assert len(after) == len(before) == 300
    old, new = identities(before), identities(after)
    assert new[:100] == old[:100]
    medical = np.array([after.source_of(i) == "medical" for i in range(300)])
    behind = medical[100:].cumsum() - 0.6 * np.arange(1, 201)
    assert abs(behind).max() <= 1
    assert after[150]["stage"] == "from row 100"
    used = {record: new.count(record) for record in new}
    assert max(used.values()) <= 2  # the cap of medical, over all that is trained
    assert all(used[r] == 1 for r, m in zip(new, medical, strict=True) if not m)


def test_a_second_change_goes_on_behind_the_first(tmp_path: Path) -> None:
    built(tmp_path)
    first = (100, {"general": 0.4, "medical": 0.6})
    one, two = changed(tmp_path, first), changed(tmp_path, first, (200, {"general": 1.0}))
    assert identities(two)[:200] == identities(one)[:200]
    assert {two.source_of(i) for i in range(200, len(two))} == {"general"}


def test_a_change_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    built(tmp_path)
    with pytest.raises(RecipeError, match="row 300 is not inside the set"):
        changed(tmp_path, (300, {"general": 1.0}))
    with pytest.raises(RecipeError, match="neither a source nor a group"):
        changed(tmp_path, (10, {"law": 1.0}))


def test_a_loader_goes_on_from_the_state_before_a_change_and_keeps_the_change_in_its_own(
    tmp_path: Path,
) -> None:
    pytest.importorskip("torch", reason="torch is not installed (extra `torch`)")
    loader = datamix.open(built(tmp_path)).torch(4)
    batches = iter(loader)
    for _ in range(10):
        next(batches)
    state = loader.state_dict()
    after = changed(tmp_path, (40, {"medical": 1.0})).torch(4)
    after.load_state_dict(state)
    assert next(iter(after))["input_ids"].shape[0] == 4
    kept = after.state_dict()
    assert kept["changes"] == [{"row": 40, "weights": {"medical": 1.0}}]
    datamix.open(tmp_path / "set", cache=tmp_path / "cache", changes=kept["changes"]).torch(
        4
    ).load_state_dict(kept)
    with pytest.raises(DataError, match="other changes of weights"):
        loader.load_state_dict(kept)
    with pytest.raises(DataError, match="other changes of weights"):
        changed(tmp_path, (20, {"medical": 1.0})).torch(4).load_state_dict(state)


def test_weights_of_a_scaled_set_do_not_change(tmp_path: Path) -> None:
    path = recipe(tmp_path, encode={"max_length": 256, "pack": "none"})
    options = Options(tmp_path / "rung", tmp_path / "cache", 1)
    (out,) = sweep(Recipe.read(path), "general=0.5", options, scale=0.5)
    with pytest.raises(RecipeError, match="weights change in whole sets only"):
        datamix.open(out, cache=tmp_path / "cache", changes=[{"row": 20, "weights": {"general": 1.0}}])


def test_a_source_that_is_used_up_takes_no_weight_any_more(tmp_path: Path) -> None:
    staged(
        tmp_path,
        {"name": "first", "size": 200, "weights": {"medical": 1}},
        {"name": "then", "size": 100, "weights": {"general": 1}},
    )
    with pytest.raises(RecipeError, match=r"medical is used up \(max_epochs 1\)\. Give it weight 0"):
        changed(tmp_path, (250, {"general": 0.5, "medical": 0.5}))
    rest = changed(tmp_path, (250, {"general": 1.0, "medical": 0}))
    assert {rest.source_of(i) for i in range(250, len(rest))} == {"general"}
    assert len(rest) == 300


def test_a_change_within_a_later_stage_keeps_the_stages_before_it(tmp_path: Path) -> None:
    staged(
        tmp_path,
        {"name": "broad", "size": 100, "weights": {"general": 0.8, "medical": 0.2}},
        {"name": "sharp", "size": 100, "weights": {"general": 0.5, "medical": 0.5}},
    )
    rows = changed(tmp_path, (150, {"medical": 1.0}))
    names = [rows[place]["stage"] for place in range(200)]
    assert names == ["broad"] * 100 + ["sharp"] * 50 + ["from row 150"] * 50
    assert {rows.source_of(place) for place in range(150, 200)} == {"medical"}
    before = datamix.open(tmp_path / "set", cache=tmp_path / "cache")
    assert identities(rows)[:150] == identities(before)[:150]
