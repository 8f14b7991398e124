"""A ladder of mixtures: its table, and rungs that cannot be mixed."""

from __future__ import annotations

from pathlib import Path

import pytest
from small import GENERAL, alpaca, recipe, write_jsonl

from datamix.core.errors import RecipeError
from datamix.jobs.build import sweep
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe
from datamix.reporting.summaries import ladder_table


def grouped(tmp_path: Path) -> tuple[Recipe, Options]:
    """Two general sources in one group, beside medical; nothing packed."""
    path = recipe(
        tmp_path,
        sources={
            "zh": {"path": "general.jsonl", "group": "general"},
            "en": {"path": "more.jsonl", "group": "general"},
            "medical": {"path": "medical.jsonl", "weight": 0.5},
        },
        groups={"general": {"weight": 0.5}},
        encode={"max_length": 256},
        dedupe=None,
        validation=None,
    )
    write_jsonl(tmp_path / "more.jsonl", alpaca(GENERAL, 320)[300:])
    return Recipe.read(path), Options(tmp_path / "s", tmp_path / "cache", 1)


def test_the_table_of_a_ladder_says_what_the_varied_group_reaches(tmp_path: Path) -> None:
    read, options = grouped(tmp_path)
    made = sweep(read, "general=0.3,0.6", options)
    lines = ladder_table(made).splitlines()
    assert "all of general" in lines[0]
    for line, share in zip(lines[2:4], (0.3, 0.6), strict=True):
        assert float(line.split()[-1].rstrip("%")) == pytest.approx(100 * share, abs=1)


def test_a_rung_that_cannot_be_mixed_is_told_before_any_is_written(tmp_path: Path) -> None:
    read, options = grouped(tmp_path)
    with pytest.raises(RecipeError, match=r"--vary general=0\.001: .*leave 0\.001 out"):
        sweep(read, "general=0.3,0.001", options)
    assert not list(tmp_path.glob("s-*"))
