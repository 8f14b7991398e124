"""Scores in recipes: records kept by a score, sources cut into buckets, the best of duplicates; scores of other bytes are refused."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import GENERAL, alpaca, recipe, write_jsonl

import datamix
from datamix.core.errors import RecipeError
from datamix.pipeline.store import Store
from datamix.recipe import Recipe
from datamix.scoring import ScoredFile, write_scores

RECORDS = 300


def score_of(record: int) -> float:
    return float(record * 37 % RECORDS)  # every number once


def scored(folder: Path, file: str = "general.jsonl", source: str = "general", skip: int = -1) -> Path:
    """Scores ``edu`` of 300 records, all but ``skip``."""
    sha256 = hashlib.sha256((folder / file).read_bytes()).hexdigest()
    records = np.array([r for r in range(RECORDS) if r != skip])
    scores = np.array([score_of(r) for r in records.tolist()])
    write_scores(
        folder / "scores.parquet", "edu", "test", [ScoredFile(source, file, sha256, records, scores)]
    )
    return folder / "scores.parquet"


def build(folder: Path, name: str = "out", **changes: Any) -> tuple[datamix.TrainingSet, dict[str, Any]]:  # type: ignore[name-defined]
    base: dict[str, Any] = {"validation": None, "dedupe": None, "encode": {"max_length": 256, "pack": "none"},
                            "mix": {"unit": "records"}, "scores": "scores.parquet", "write": ["parquet"]}  # fmt: skip
    path = recipe(folder, **(base | changes))
    scored(folder) if not (folder / "scores.parquet").exists() else None
    datamix.build(path, folder / name, cache=folder / "cache", workers=1)
    rows = datamix.open(folder / name)
    return rows, dict(rows.manifest)


def used(rows: Any, source: str) -> list[int]:
    return [row["records"][0]["record"] for row in rows if row["source"] == source]


@pytest.mark.parametrize("place", ["source", "clean"])
def test_records_are_kept_by_their_score_and_the_set_verifies(tmp_path: Path, place: str) -> None:
    band = {"score": "edu", "min": 100, "max": 250}
    sources = {"general": {"path": "general.jsonl"}, "medical": {"path": "medical.jsonl"}}
    steps: list[Any] = []
    if place == "source":
        sources["general"]["keep"] = band  # type: ignore[assignment]
    else:
        steps = [{"keep": {**band, "sources": ["general"]}}]
    rows, manifest = build(tmp_path, sources=sources, clean=steps)
    assert sorted(used(rows, "general")) == [r for r in range(RECORDS) if 100 <= score_of(r) <= 250]
    assert len(used(rows, "medical")) == 200
    assert manifest["sources"]["general"]["cleaned_by"] == {"keep": 149}
    assert all(check.ok for check in datamix.verify(tmp_path / "out", inputs=1))


def test_another_band_reads_and_encodes_nothing_again_and_other_scores_are_another_set(
    tmp_path: Path,
) -> None:
    def sources(low: float) -> dict[str, Any]:
        return {"general": {"path": "general.jsonl", "keep": {"score": "edu", "min": low}}}

    build(tmp_path, sources=sources(100))
    store = Store(tmp_path / "cache" / "store")
    before = Counter(p.name for p in store.root.rglob("*.arrow"))
    rows, first = build(tmp_path, "other", sources=sources(200))
    after = Counter(p.name for p in store.root.rglob("*.arrow"))
    assert {name for name in after if after[name] > before[name]}.isdisjoint(
        {"records.arrow", "tokens.arrow", "cleaned.arrow"}
    )
    assert len(used(rows, "general")) == 100
    scored(tmp_path, skip=next(r for r in range(RECORDS) if score_of(r) == 250))
    rows, second = build(tmp_path, "third", sources=sources(200))
    assert len(used(rows, "general")) == 99
    assert second["sources"]["general"]["cleaned_by"] == {"keep": 200, "score_missing": 1}
    assert first["key"] != second["key"]


def test_buckets_are_sources_with_weights_of_their_own_and_their_text_is_read_once(tmp_path: Path) -> None:
    buckets = {"score": "edu", "quantiles": [0.5, 0.9], "weights": [1, 2, 3]}
    sources = {
        "general": {"path": "general.jsonl", "weight": 0.6, "max_epochs": 4, "buckets": buckets},
        "medical": {"path": "medical.jsonl", "weight": 0.4},
    }
    rows, manifest = build(tmp_path, sources=sources, mix={"unit": "records", "size": 200})
    assert list(manifest["sources"]) == ["general-1", "general-2", "general-3", "medical"]
    counts = Counter(row["source"] for row in rows)
    assert counts == {"general-1": 20, "general-2": 40, "general-3": 60, "medical": 80}
    for number, (low, high) in enumerate([(0, 150), (150, 270), (270, 300)], 1):
        assert {low <= score_of(r) < high for r in used(rows, f"general-{number}")} == {True}
        records = manifest["sources"][f"general-{number}"]
        assert records["available"]["records"] == high - low
        assert records["cleaned_by"] == {"bucket": RECORDS - (high - low)}
    assert all(check.ok for check in datamix.verify(tmp_path / "out", inputs=1))
    store = Store(tmp_path / "cache" / "store")
    assert len(list(store.root.rglob("tokens.arrow"))) == 2  # one for each file
    again = Recipe.model_validate(manifest["recipe"])
    assert again.groups["general"].weight == 0.6
    plan = datamix.plan(tmp_path / "recipe.yaml", tmp_path / "out2", cache=tmp_path / "cache")
    assert [source["name"] for source in dict(plan)["sources"]] == list(manifest["sources"])


def test_of_duplicates_the_one_with_the_highest_score_stays_across_buckets_too(tmp_path: Path) -> None:
    records = alpaca(GENERAL, 200)
    changes: dict[str, Any] = {
        "dedupe": {"exact": True, "rank": {"score": "edu"}},
        "sources": {"general": {"path": "twice.jsonl", "buckets": {"score": "edu", "quantiles": [0.5]}}},
    }
    write_jsonl(tmp_path / "twice.jsonl", [*records, *records[:100]])
    scored(tmp_path, "twice.jsonl")
    rows, _ = build(tmp_path, **changes)
    best = {max(r, r + 200, key=score_of) for r in range(100)} | set(range(100, 200))
    assert {row["records"][0]["record"] for row in rows} == best
    changes["sources"]["general"].pop("buckets")
    rows, _ = build(tmp_path, "plain", **changes)
    assert set(used(rows, "general")) == best
    changes["dedupe"] = {"exact": True}
    rows, _ = build(tmp_path, "first", **changes)
    assert set(used(rows, "general")) == set(range(200))


def test_scores_of_other_bytes_of_other_names_and_of_no_file_stop_before_work(tmp_path: Path) -> None:
    sources = {"general": {"path": "general.jsonl", "keep": {"score": "edu", "min": 1}}}
    build(tmp_path, sources=sources)
    with (tmp_path / "general.jsonl").open("a") as file:
        file.write(json.dumps(alpaca(GENERAL, 1)[0]) + "\n")
    path = tmp_path / "recipe.yaml"
    for run in (lambda: datamix.build(path, tmp_path / "new", cache=tmp_path / "c2", workers=1),
                lambda: datamix.plan(path, tmp_path / "new", cache=tmp_path / "c2")):  # fmt: skip
        with pytest.raises(
            RecipeError, match=r"no scores 'edu' of general\.jsonl as it is now .* it was changed since"
        ):
            run()
    scored(tmp_path)
    value = json.loads(path.read_text())

    def problem(**changes: Any) -> str:
        path.write_text(json.dumps(value | changes))
        with pytest.raises(RecipeError) as caught:
            datamix.build(path, tmp_path / "new", cache=tmp_path / "c2", workers=1)
        return str(caught.value)

    wrong = {"general": {"path": "general.jsonl", "keep": {"score": "edo", "min": 1}}}
    assert "no file in `scores` holds scores called 'edo'. Did you mean edu?" in problem(sources=wrong)
    assert "was not scored" in problem(
        sources=sources | {"medical": {"path": "medical.jsonl", "keep": {"score": "edu", "min": 1}}}
    )
    assert "scores: " in problem(scores=["none.parquet"])
    rows = next((tmp_path / "out" / "train").glob("*.parquet")).relative_to(tmp_path)
    assert "does not say of which files" in problem(scores=[str(rows)])
    value.pop("scores")
    assert "no file of scores is named" in problem()
    value["scores"] = "scores.parquet"
    assert "takes either field or score" in problem(clean=[{"keep": {"min": 1}}])
    cut = {"general": {"path": "general.jsonl", "buckets": {"score": "edu", "quantiles": [0.9, 0.5]}}}
    assert "should rise between 0 and 1" in problem(sources=cut)


def test_a_recipe_without_scores_keeps_its_fingerprint_and_its_fates(tmp_path: Path) -> None:
    path = recipe(tmp_path, sources={"general": {"path": "general.jsonl", "keep": {"field": "n", "min": 1}}})
    resolved = Recipe.read(path).resolved()
    assert "scores" not in resolved
    assert resolved["sources"]["general"]["keep"] == [{"field": "n", "min": 1.0, "max": None}]
    assert not {"bucket", "buckets"} & resolved["sources"]["general"].keys()
