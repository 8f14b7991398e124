"""``datamix propose`` and its way back: mixtures within caps, a table to fill, a recommended recipe that builds."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from small import GENERAL, alpaca, datamix, recipe, write_jsonl

from datamix.core.errors import RecipeError
from datamix.fitting.design import Space, choose
from datamix.jobs.build import build
from datamix.jobs.propose import propose
from datamix.jobs.recommend import Request, answer
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe


def three_sources(tmp_path: Path, **changes: object) -> Recipe:
    path = recipe(
        tmp_path,
        sources={
            "general": {"path": "general.jsonl", "weight": 0.5},
            "more": {"path": "more.jsonl", "weight": 0.2, "max_epochs": 2},
            "medical": {"path": "medical.jsonl", "weight": 0.3, "max_epochs": 3},
        },
        dedupe=None,
        encode={"max_length": 128},
        mix={"size": 9000},
        **changes,
    )
    write_jsonl(tmp_path / "more.jsonl", alpaca(GENERAL, 360)[300:])
    return Recipe.read(path)


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "runs.csv").read_text(encoding="utf-8").splitlines()))


def test_proposed_mixtures_keep_the_caps_and_more_runs_keep_the_first(tmp_path: Path) -> None:
    read = three_sources(tmp_path)
    made = propose(read, 5, Options(tmp_path / "a", tmp_path / "cache", 1))
    rows = table(tmp_path / "a")
    assert [row["run"] for row in rows] == [
        "recipe",
        "proportional",
        "uniform",
        "unimax",
        "mix-005",
    ]
    assert list(rows[0])[-3:] == ["loss:general", "loss:more", "loss:medical"]
    assert [float(rows[0][f"weight:{n}"]) for n in read.sources] == pytest.approx([0.5, 0.2, 0.3], abs=1e-6)
    for row, manifest in zip(rows, made.values(), strict=True):
        for name, source in manifest["sources"].items():
            assert source["share"]["loss_tokens"] == pytest.approx(float(row[f"weight:{name}"]), abs=0.03)
            assert source["epochs"] <= read.sources[name].max_epochs
    propose(read, 6, Options(tmp_path / "b", tmp_path / "cache", 1))
    assert table(tmp_path / "b")[:5] == rows


def test_losses_in_the_table_stay_and_other_mixtures_are_refused(tmp_path: Path) -> None:
    read, options = three_sources(tmp_path), Options(tmp_path / "a", tmp_path / "cache", 1)
    propose(read, 5, options)
    text = (tmp_path / "a" / "runs.csv").read_text(encoding="utf-8").replace(",,,\n", ",1.5,,\n", 1)
    (tmp_path / "a" / "runs.csv").write_text(text, encoding="utf-8")
    propose(read, 6, options)
    assert table(tmp_path / "a")[0]["loss:general"] == "1.5"
    (tmp_path / "a" / "runs.csv").write_text(text.replace("0.5,0.2,0.3", "0.4,0.3,0.3"), encoding="utf-8")
    with pytest.raises(RecipeError, match="holds other mixtures"):
        propose(read, 6, options)


def test_two_groups_are_a_ladder_and_few_runs_are_refused(tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        sources={
            "zh": {"path": "general.jsonl", "group": "general"},
            "en": {"path": "more.jsonl", "group": "general"},
            "medical": {"path": "medical.jsonl", "weight": 0.5, "max_epochs": 3},
        },
        groups={"general": {"weight": 0.5}},
        dedupe=None,
        encode={"max_length": 128},
    )
    write_jsonl(tmp_path / "more.jsonl", alpaca(GENERAL, 360)[300:])
    propose(Recipe.read(path), 7, Options(tmp_path / "a", tmp_path / "cache", 1))
    rows = [row for row in table(tmp_path / "a") if row["run"].startswith("mix")]
    assert len({float(row["weight:medical"]) for row in rows}) == 3
    ratios = [float(row["weight:zh"]) / float(row["weight:en"]) for row in rows]
    assert ratios == pytest.approx([ratios[0]] * 3, rel=1e-3)
    with pytest.raises(RecipeError, match="--runs 4: at least 5"):
        propose(Recipe.read(path), 4, Options(tmp_path / "b", tmp_path / "cache", 1))


def test_the_recommended_recipe_builds_as_it_is_and_is_for_known_sources_only(tmp_path: Path) -> None:
    read = three_sources(tmp_path)
    propose(read, 10, Options(tmp_path / "runs", tmp_path / ".datamix", 1))
    rng = np.random.default_rng(0)
    for row in table(tmp_path / "runs"):
        weights = {name: float(row[f"weight:{name}"]) for name in read.sources}
        lines = [{"step": 0, "tokens": 0, "source": n, "split": "validation", "loss": 4.0} for n in weights]
        lines += [
            {"step": 9, "tokens": 9000, "source": n, "split": "validation",
             "loss": 2 + (0.1 + (3 if n == "medical" else 1) * w) ** -0.4 + 0.002 * rng.normal()}
            for n, w in weights.items()
        ]  # fmt: skip
        write_jsonl(tmp_path / "runs" / row["run"] / "losses.jsonl", lines)
    found = answer(Request(tmp_path / "runs", recipe=read, out=tmp_path / "deep" / "er"))
    assert found.result.verdict in ("better", "indistinguishable"), found.result.because
    assert table(tmp_path / "runs")[-1]["run"] == "base"
    assert set(found.to_json()["predicted"]) >= {"recipe", "proportional", "uniform", "unimax"}
    made = build(
        Recipe.read(tmp_path / "deep" / "er" / "recommended.yaml"),
        Options(tmp_path / "set", tmp_path / ".datamix", 1),
    )
    for name, weight in found.weights.items():
        assert made["sources"][name]["share"]["loss_tokens"] == pytest.approx(weight.mean, abs=0.03)
    text = (tmp_path / "runs" / "runs.csv").read_text(encoding="utf-8").replace("weight:more", "weight:other")
    (tmp_path / "other.csv").write_text(text, encoding="utf-8")
    told = datamix("recommend", tmp_path / "other.csv", "--recipe", tmp_path / "recipe.yaml", "--json")
    assert told.returncode == 2
    assert "The runs weigh other, and the recipe has the sources general, more, medical" in told.stderr
    shown = datamix("recommend", tmp_path / "runs", "--json")
    assert shown.returncode == 0
    assert json.loads(shown.stdout)["verdict"] in ("better", "indistinguishable")


def test_drawn_mixtures_are_far_apart_sum_to_one_and_never_pass_a_cap() -> None:
    caps = np.array([1.0, 0.3, 0.05, 1.0, 0.4])
    space = Space(np.full(5, 0.2), caps, np.full(5, 0.002), tuple(np.ones(1) for _ in range(5)))
    chosen = np.array(choose(space, [np.full(5, 0.2)], 24, 7))
    assert chosen.sum(axis=1) == pytest.approx(np.ones(24))
    assert (chosen <= caps + 1e-3).all()
    assert (chosen >= 0).all()
    apart = ((np.sqrt(chosen)[:, None] - np.sqrt(chosen)[None]) ** 2).sum(axis=-1) + 9 * np.eye(24)
    drawn = np.sqrt(np.array(choose(space, [], 4000, 7))[np.random.default_rng(0).permutation(4000)[:24]])
    random = ((drawn[:, None] - drawn[None]) ** 2).sum(axis=-1) + 9 * np.eye(24)
    assert apart.min() > 2 * random.min()
