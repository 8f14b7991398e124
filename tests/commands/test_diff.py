"""``datamix diff``: what changed from one set to another, by recipe, inputs, records, shares and lengths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import small
from click.testing import CliRunner

import datamix
from datamix.commands.cli import cli
from datamix.core.errors import RecipeError
from datamix.jobs.build import build
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe


def built(folder: Path, name: str, **changes: Any) -> Path:
    path = small.recipe(folder, **changes)
    build(Recipe.read(path), Options(folder / name, folder / ".datamix", 1))
    return folder / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diff")
    built(folder, "first")
    built(folder, "second", dedupe={"exact": True, "near": {"threshold": 0.6}})
    return folder


def test_a_set_equals_itself(folder: Path) -> None:
    difference = datamix.diff(folder / "first", folder / "first")
    assert difference.same_rows
    assert (difference.recipe, difference.inputs, difference.records, difference.amounts) == ((), (), (), ())
    assert "The rows of both sets are equal" in str(difference)


def test_records_that_went_are_counted_by_source_and_reason(folder: Path) -> None:
    difference = datamix.diff(folder / "first", folder / "second")
    before, after = (
        json.loads((folder / n / "manifest.json").read_bytes())["sources"] for n in ("first", "second")
    )
    assert not difference.same_rows
    assert [(c.key, c.before, c.after) for c in difference.recipe] == [
        ("dedupe.near.threshold", "0.8", "0.6")
    ]
    near = sum(
        r.num_records for r in difference.records if r.source == "general" and r.after == "removed: near"
    )
    assert (
        near
        == after["general"]["removed_by"].get("near", 0) - before["general"]["removed_by"].get("near", 0)
        > 0
    )
    for name in before:
        moved = [r for r in difference.records if r.source == name]
        came = sum(r.num_records for r in moved if r.after == "used")
        went = sum(r.num_records for r in moved if r.before == "used")
        assert came - went == after[name]["records"]["used"] - before[name]["records"]["used"]
    counts = [r.num_records for r in difference.records]
    assert counts == sorted(counts, reverse=True)
    amounts = {c.key: (c.before, c.after) for c in difference.amounts}
    emitted = tuple(f"{s['general']['emitted']['records']:,}" for s in (before, after))
    assert amounts["general: records emitted"] == emitted


def test_the_way_back_is_the_mirror(folder: Path) -> None:
    there = datamix.diff(folder / "first", folder / "second")
    back = datamix.diff(folder / "second", folder / "first")
    assert {(r.source, r.after, r.before, r.num_records) for r in back.records} == {
        (r.source, r.before, r.after, r.num_records) for r in there.records
    }
    assert (there.num_came, there.num_went) == (back.num_went, back.num_came)


def test_a_file_that_moved_changes_no_record(tmp_path: Path) -> None:
    first = built(tmp_path, "first")
    (tmp_path / "general.jsonl").rename(tmp_path / "moved.jsonl")
    value = json.loads((tmp_path / "recipe.yaml").read_text(encoding="utf-8"))
    value["sources"]["general"]["path"] = "moved.jsonl"
    (tmp_path / "recipe.yaml").write_text(json.dumps(value), encoding="utf-8")
    build(Recipe.read(tmp_path / "recipe.yaml"), Options(tmp_path / "second", tmp_path / ".datamix", 1))
    difference = datamix.diff(first, tmp_path / "second")
    assert difference.same_rows
    assert difference.records == ()
    assert {c.key for c in difference.inputs} == {"general.jsonl", "moved.jsonl"}


def test_a_file_with_other_bytes_and_a_new_source_say_so(tmp_path: Path) -> None:
    first = built(tmp_path, "first")
    path = small.recipe(tmp_path)
    small.write_jsonl(tmp_path / "medical.jsonl", [*small.alpaca(small.MEDICAL, 200), {"instruction": 1}])
    small.write_jsonl(tmp_path / "extra.jsonl", small.alpaca(["新来源"], 30))
    value = json.loads(path.read_text(encoding="utf-8"))
    value["sources"]["extra"] = {"path": "extra.jsonl", "weight": 0.1}
    value["max_reject_share"] = 0.5
    path.write_text(json.dumps(value), encoding="utf-8")
    build(Recipe.read(path), Options(tmp_path / "second", tmp_path / ".datamix", 1))
    difference = datamix.diff(first, tmp_path / "second")
    before = {(r.source, r.before) for r in difference.records}
    assert {("medical", "file changed"), ("extra", "not read")} <= before
    assert sum(r.num_records for r in difference.records if r.source == "extra") == 30
    assert sum(r.num_records for r in difference.records if r.after.startswith("rejected: ")) == 1
    assert next(c for c in difference.amounts if c.key == "extra: share asked").before is None


def test_a_virtual_set_is_compared_by_its_ledger(tmp_path: Path) -> None:
    first, second = built(tmp_path, "first"), built(tmp_path, "second", write=[])
    difference = datamix.diff(first, second)
    assert difference.records == ()
    assert [c.key for c in difference.recipe] == ["write[0].name", "write[1].name"]


def test_the_command_prints_tables_or_a_page(folder: Path) -> None:
    arguments = ["diff", str(folder / "first"), str(folder / "second")]
    printed = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert printed.exit_code == 0
    for text in ("dedupe.near.threshold", "Records with another fate", "removed: near", "went"):
        assert text in printed.output
    page = CliRunner().invoke(cli, [*arguments, "--html"], catch_exceptions=False).output
    assert page.startswith("<!doctype html>")
    assert "<td>removed: near</td>" in page
    assert 'id="amounts"' in page


def test_a_folder_without_a_set_is_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match="holds no manifest"):
        datamix.diff(folder / "first", folder)
