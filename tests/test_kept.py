"""Virtual sets, sweeps, export and the Python face: all from what the cache holds."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from small import recipe

import datamix
from datamix.core.errors import DataError, RecipeError
from datamix.jobs.build import build, parse_vary, sweep
from datamix.pipeline.exporting import export, parse_format
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe


def both(tmp_path: Path) -> tuple[Path, Path]:
    """The same recipe built and built virtually, in one cache."""
    path = recipe(tmp_path)
    datamix.build(path, tmp_path / "real", cache=tmp_path / "cache", workers=1)
    datamix.build(recipe(tmp_path, write=[]), tmp_path / "virtual", cache=tmp_path / "cache", workers=1)
    return tmp_path / "real", tmp_path / "virtual"


def test_a_virtual_set_is_the_same_rows_in_the_same_order(tmp_path: Path) -> None:
    real, virtual = both(tmp_path)
    rows = datamix.open(virtual, cache=tmp_path / "cache")
    table = pq.read_table(real / "train")
    assert len(rows) == table.num_rows
    assert not (virtual / "train").exists()
    for place, row in enumerate(table.to_pylist()):
        assert row["input_ids"] == rows[place]["input_ids"].tolist()
        assert row["labels"] == rows[place]["labels"].tolist()
        assert row["source"] == rows.source_of(place)


def test_a_virtual_set_is_recounted_from_the_cache(tmp_path: Path) -> None:
    path = recipe(tmp_path, write=[])
    datamix.build(path, tmp_path / "virtual", workers=1)
    assert [c.detail for c in datamix.verify(tmp_path / "virtual") if not c.ok] == []


def test_a_virtual_set_exports_to_the_bytes_of_a_real_one(tmp_path: Path) -> None:
    real, virtual = both(tmp_path)
    export(virtual, [("parquet", ())], tmp_path / "cache", workers=1)
    assert (virtual / "train/00000.parquet").read_bytes() == (real / "train/00000.parquet").read_bytes()


def test_a_virtual_set_without_its_cache_names_the_cure(tmp_path: Path) -> None:
    _, virtual = both(tmp_path)
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(DataError, match="datamix build RECIPE"):
        datamix.open(virtual, cache=tmp_path / "cache")


def test_export_adds_formats_to_a_finished_set(tmp_path: Path) -> None:
    real, _ = both(tmp_path)
    listed = export(real, [parse_format("arrow"), parse_format("npy")], tmp_path / "cache", workers=1)
    manifest = json.loads((real / "manifest.json").read_text())
    assert {e["format"] for e in listed} == {"arrow", "npy"}
    assert {"arrow", "npy", "parquet", "jsonl"} <= {e["format"] for e in manifest["outputs"]}
    assert [c.detail for c in datamix.verify(real) if not c.ok] == []


def test_a_sweep_makes_rungs_that_share_one_preparation(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    made = sweep(Recipe.read(path), "general=0,0.25,0.5", Options(tmp_path / "s", tmp_path / "cache", 1))
    assert [p.name for p in made] == ["s-general-0", "s-general-0.25", "s-general-0.5"]
    reached = [m["sources"]["general"]["share"]["loss_tokens"] for m in made.values()]
    assert reached[0] == 0
    assert reached[1] == pytest.approx(0.25, abs=0.02)
    assert reached[2] == pytest.approx(0.5, abs=0.02)
    rows = datamix.open(next(iter(made)), cache=tmp_path / "cache")
    assert {rows.source_of(i) for i in range(len(rows))} == {"medical"}


def test_a_small_version_repeats_as_the_large_one_does(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    options = Options(tmp_path / "s", tmp_path / "cache", 1)
    (large,) = sweep(Recipe.read(path), "general=0.5", options).values()
    (small,) = sweep(
        Recipe.read(path), "general=0.5", options.__class__(tmp_path / "t", tmp_path / "cache", 1), 0.5
    ).values()
    for name in ("general", "medical"):
        ratio = small["sources"][name]["emitted"]["rows"] / large["sources"][name]["emitted"]["rows"]
        assert ratio == pytest.approx(0.5, abs=0.15)


def test_vary_is_read_or_told(tmp_path: Path) -> None:
    assert parse_vary("general=0,0.5") == ("general", (0.0, 0.5))
    for wrong in ("general", "general=", "general=2", "=1"):
        with pytest.raises(RecipeError, match="--vary"):
            parse_vary(wrong)
    with pytest.raises(RecipeError, match="general, medical"):
        sweep(Recipe.read(recipe(tmp_path)), "law=0.5", Options(tmp_path / "s", tmp_path / "cache", 1))


def test_the_python_face_builds_plans_verifies_and_opens(tmp_path: Path) -> None:
    path = recipe(tmp_path, write=["parquet", "arrow"])
    planned = datamix.plan(path, tmp_path / "set", exact=True)
    manifest = datamix.build(path, tmp_path / "set", workers=1)
    assert planned["exact"]
    assert planned["sources"][0]["tokens"] == manifest["sources"]["general"]["available"]["tokens"]
    assert all(check.ok for check in datamix.verify(tmp_path / "set"))
    rows = datamix.open(tmp_path / "set")
    seen = np.concatenate([batch["labels"].ravel() for batch in rows.batches(4)])
    total = sum(s["emitted"]["loss_tokens"] for s in manifest["sources"].values())
    assert int((seen != -100).sum()) == total
    assert build(Recipe.read(path), Options(tmp_path / "set", tmp_path / ".datamix")) == manifest


@pytest.mark.parametrize("write", [["parquet"], []], ids=["parquet", "virtual"])
def test_a_deleted_cache_is_brought_back_by_building_again(tmp_path: Path, write: list[str]) -> None:
    path, cache = recipe(tmp_path, write=write), tmp_path / "cache"
    datamix.build(path, tmp_path / "set", cache=cache, workers=1)
    shutil.rmtree(cache)
    with pytest.raises(DataError, match="again"):
        export(tmp_path / "set", [parse_format("jsonl")], cache, 1)
    datamix.build(path, tmp_path / "set", cache=cache, workers=1)
    assert export(tmp_path / "set", [parse_format("jsonl")], cache, 1)
    assert len(datamix.open(tmp_path / "set", cache=cache))
    if write:  # verify looks for the rows of a virtual set beside it
        assert [c.detail for c in datamix.verify(tmp_path / "set") if not c.ok] == []
