"""Sources, groups and sets named in Chinese: built, exported, verified and opened under those names."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from small import datamix, recipe

import datamix as package
from datamix.commands.cli import cli
from datamix.core.errors import RecipeError
from datamix.recipe import Recipe

FORMATS = [
    "jsonl",
    "arrow",
    "safetensors",
    "npy",
    "mds",
    "litdata",
    "webdataset",
    "llamafactory",
    "trl",
    "axolotl",
    "ms-swift",
]


def chinese(folder: Path) -> Path:
    return recipe(
        folder,
        name="医疗-混合",
        sources={
            "通用": {"path": "general.jsonl", "group": "基础"},
            "医疗问答": {"path": "medical.jsonl", "weight": 0.3, "max_epochs": 2},
        },
        groups={"基础": {"weight": 0.7}},
        dedupe={"exact": True, "near": {"threshold": 0.8}, "prefer": ["医疗问答"]},
        encode={"max_length": 256},
        write=["parquet", *FORMATS],
    )


def test_a_set_of_sources_with_chinese_names_is_built_verified_and_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = chinese(tmp_path)
    monkeypatch.chdir(tmp_path)
    built = datamix("build", path, LC_ALL="C")
    assert built.returncode == 0, built.stderr
    assert "Warning" not in built.stderr
    out = tmp_path / "医疗-混合"
    assert {p.stem.rpartition("-")[0] for p in (out / "validation").rglob("*.parquet")} == {
        "通用",
        "医疗问答",
    }
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    assert list(manifest["sources"]) == ["通用", "医疗问答"]
    assert all(check.ok for check in package.verify(out, 1.0))
    rows = pq.read_table(next((out / "train").glob("*.parquet")), columns=["source"])
    assert set(rows["source"].to_pylist()) == {"通用", "医疗问答"}
    assert "医疗问答" in (out / "report.html").read_text(encoding="utf-8")
    for arguments in (
        ["inspect", str(out), "--stats"],
        ["inspect", str(out), "--removed"],
        ["plan", str(path)],
    ):
        shown = CliRunner().invoke(cli, arguments, catch_exceptions=False, obj={})
        assert shown.exit_code == 0
        assert "医疗问答" in shown.output or "通用" in shown.output or "--removed" in arguments
    ladder = datamix("sweep", path, "--vary", "基础=0.2,0.5", "-o", tmp_path / "阶梯")
    assert ladder.returncode == 0, ladder.stderr
    assert (tmp_path / "阶梯-基础-0.2" / "manifest.json").is_file()


def test_a_path_that_looks_like_a_hub_id_gets_its_address(tmp_path: Path) -> None:
    path = recipe(tmp_path, sources={"a": {"path": "tatsu-lab/alpaca"}, "b": {"path": "genral.jsonl"}})
    with pytest.raises(RecipeError) as wrong:
        package.plan(Recipe.read(path), tmp_path / "out")
    lines = str(wrong.value).splitlines()
    assert "For the dataset of the Hub write hf://datasets/tatsu-lab/alpaca." in lines[0]
    assert "the nearest name is" in lines[1]
    assert "Hub" not in lines[1]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("llama_factory", "llamafactory"),
        ("LLaMA-Factory", "llamafactory"),
        ("ms_swift", "ms-swift"),
        ("parqet", "parquet"),
    ],
)
def test_a_format_that_does_not_exist_gets_the_nearest(tmp_path: Path, name: str, meant: str) -> None:
    with pytest.raises(RecipeError, match=f"there is no format '{name}'. Did you mean {meant}[?]"):
        package.plan(Recipe.read(recipe(tmp_path, write=[name])), tmp_path / "out")


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "recipe.yaml", "-o", "afile/x"],
        ["build", "recipe.yaml", "-o", "afile"],
        ["build", "recipe.yaml", "-o", "/proc/x"],
        ["build", "recipe.yaml", "--cache", "afile"],
        ["build", "recipe.yaml", "--cache", "afile/c"],
        ["sweep", "recipe.yaml", "--vary", "general=0.5", "-o", "afile/x"],
        ["plan", "recipe.yaml", "--cache", "afile/c"],
        ["export", "afile/x", "--to", "trl"],
        ["verify", "afile/x"],
        ["inspect", "afile/x"],
        ["init", "general.jsonl", "-o", "afile/x"],
        ["init", "general.jsonl", "-o", "/proc/x"],
        ["convert", "general.jsonl", "/proc/x.jsonl", "--to", "messages"],
        ["dedupe", "general.jsonl", "-o", "afile/x.jsonl"],
        ["cache", "--cache", "afile"],
        ["cache", "--cache", "afile", "--prune"],
    ],
    ids=" ".join,
)
def test_a_place_that_cannot_be_written_is_named_and_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    recipe(tmp_path)
    (tmp_path / "afile").write_text("text")
    monkeypatch.chdir(tmp_path)
    done = datamix(*arguments)
    assert done.returncode in (2, 4), done.stderr
    assert "bug" not in done.stderr
    assert "The machine refused" not in done.stderr
    assert "afile" in done.stderr or "/proc/x" in done.stderr
    assert (tmp_path / "afile").read_text() == "text"
