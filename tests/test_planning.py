"""What `plan` and `build` say before the work: shares in every unit, what is scarce, what more epochs would give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small import MEDICAL, alpaca, datamix, recipe, write_jsonl

from datamix.pipeline.planning import make_plan
from datamix.pipeline.progress import Screen
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe
from datamix.reporting.summaries import plan_table, plan_tree

GROUPED = {
    "groups": {"domain": {"weight": 0.9}},
    "dedupe": None,
    "validation": None,
    "encode": {"max_length": 256, "pack": "none"},
}


@pytest.fixture
def grouped(tmp_path: Path) -> Path:
    """Plenty that is asked for little, and two small sources that share a large weight."""
    path = recipe(
        tmp_path,
        **GROUPED,
        sources={
            "general": {"path": "general.jsonl", "weight": 0.1},
            "medical": {"path": "medical.jsonl", "group": "domain"},
            "nursing": {"path": "nursing.jsonl", "group": "domain"},
        },
    )
    write_jsonl(tmp_path / "nursing.jsonl", alpaca(MEDICAL, 40))
    return path


def planned(path: Path, *overrides: str) -> dict[str, Any]:
    options = Options(path.parent / "set", path.parent / "cache", 1)
    return make_plan(Recipe.read(path, overrides), options, True, None, Screen(quiet=True))


def test_a_plan_says_what_is_scarce_first_with_a_ladder_for_all_that_bind(grouped: Path) -> None:
    plan = planned(grouped)
    assert plan["binding"] == plan["scarcity"]["scarce"] == ["medical", "nursing"]
    assert [line["binds"] for line in plan["sources"]] == [False, True, True]
    rungs = plan["scarcity"]["ladder"]
    assert [r["max_epochs"] for r in rungs] == [1, 2, 4, 8]
    assert rungs[1]["total"] == pytest.approx(2 * plan["total"], abs=2)
    text = plan_table(plan)
    assert text.index("Scarce: medical and nursing set the size") < text.index("available")
    raised = planned(grouped, "sources.medical.max_epochs=2", "sources.nursing.max_epochs=2")
    assert raised["total"] == rungs[1]["total"]


def test_a_build_says_what_is_scarce_before_it_mixes(grouped: Path) -> None:
    done = datamix("build", grouped, "-o", grouped.parent / "set", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "Scarce: medical and nursing set the size" in done.stderr.replace("\n", " ")


def test_shares_stand_in_every_unit_and_as_the_trainer_averages(grouped: Path) -> None:
    plan = planned(grouped, "mix.loss_norm=example")
    for unit in ("records", "tokens", "loss_tokens", "effective"):
        assert sum(line["shares"][unit] for line in plan["sources"]) == pytest.approx(1)
    for line in plan["sources"]:  # nothing is packed: an example is a record
        assert line["shares"]["effective"] == pytest.approx(line["shares"]["records"])
        assert line["shares"]["loss_tokens"] == pytest.approx(line["asked"])
    assert "% of loss" in plan_table(plan)
    assert "effective" not in planned(grouped)["sources"][0]["shares"]


def test_a_plan_says_how_much_of_each_other_source_is_needed(grouped: Path) -> None:
    plan = planned(grouped)
    (need,) = plan["needs"]
    assert need["source"] == "general"
    has = {line["name"]: line["loss_tokens"] for line in plan["sources"]}
    assert need["gives"] == has["general"]
    for other in need["others"]:
        asked = next(line["asked"] for line in plan["sources"] if line["name"] == other["name"])
        assert other["needs"] == pytest.approx(has["general"] * asked / 0.1)
        assert other["lacks"] == pytest.approx(other["needs"] - other["has"])
        assert other["epochs"] == pytest.approx(other["needs"] / has[other["name"]])
    enough = planned(grouped, "sources.medical.max_epochs=1000", "sources.nursing.max_epochs=1000")
    assert [need["source"] for need in enough["needs"]] != ["general"]
    text = plan_table(plan)
    assert "To use all of general (max_epochs 1), medical must give" in text
    assert "of its records" in text


def test_a_tree_shows_groups_and_sources_with_their_shares(grouped: Path) -> None:
    lines = plan_tree(planned(grouped)).splitlines()
    assert lines[0].startswith("small  ")
    assert lines[1].startswith("├── domain  90.0%")
    assert lines[2].startswith("│   ├── medical  ")
    assert lines[3].startswith("│   └── nursing  ")
    assert lines[4].startswith("└── general  10.0%")
    shown = datamix("plan", grouped, "--tree", "-o", grouped.parent / "set")
    assert "└── general  10.0%" in shown.stdout, shown.stderr
