"""A manifest depends on neither the recipe's folder nor that of its inputs, and the inputs are found again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small import GENERAL, MEDICAL, TOKENIZER, alpaca, datamix, fingerprint, write_jsonl

from datamix import Recipe, verify
from datamix.jobs.build import build
from datamix.pipeline.built_sets import read_manifest
from datamix.pipeline.input_places import input_places
from datamix.pipeline.steps import Options
from datamix.read.listing import name_files, published_path


def lay_out(data: Path, recipe: Path, where: str, **changes: Any) -> Path:
    """Inputs below ``data``, and a recipe that names them by ``where``: an absolute path, or one seen from the recipe."""
    write_jsonl(data / "general" / "b.jsonl", alpaca(GENERAL, 60))
    write_jsonl(data / "general" / "deep" / "a.jsonl", alpaca(GENERAL, 90)[60:])
    write_jsonl(data / "medical.jsonl", [*alpaca(MEDICAL, 60), "not a record"])
    write_jsonl(data / "exam" / "held.jsonl", alpaca(["Is it so"], 9))
    write_jsonl(data / "eval.jsonl", alpaca(MEDICAL, 7))
    shutil.copytree(TOKENIZER, data / "tokenizer", dirs_exist_ok=True)
    value = {
        "name": "placed",
        "kind": "sft",
        "tokenizer": f"{where}/tokenizer",
        "sources": {
            "general": {"path": f"{where}/general/**/*.jsonl", "weight": 1},
            "medical": {"path": f"{where}/medical.jsonl", "weight": 1},
        },
        "decontaminate": {"against": [{"path": f"{where}/eval.jsonl"}], "fields": "all"},
        "validation": {"path": f"{where}/exam"},
        "encode": {"max_length": 256},
        **changes,
    }
    recipe.parent.mkdir(parents=True, exist_ok=True)
    recipe.write_text(json.dumps(value), encoding="utf-8")
    return recipe


def built(recipe: Path, out: Path, cache: Path | None = None) -> Path:
    build(Recipe.read(recipe), Options(out, cache or out.parent / ".datamix", 1))
    return out


@pytest.mark.parametrize("way", ["absolute", "above", "file URL"])
def test_the_same_inputs_at_two_places_give_the_same_files(tmp_path: Path, way: str) -> None:
    sets = []
    for home in (tmp_path / "a", tmp_path / "z" / "deeper"):
        data, beside = home / "data", "z-recipes" if sets else "recipes"
        where = {"absolute": str(data), "above": "../data", "file URL": f"file://{data}"}[way]
        changes = {"tokenizer": str(data / "tokenizer")} if way == "file URL" else {}
        recipe = lay_out(data, home / beside / "recipe.yaml", where, **changes)
        sets.append(built(recipe, home / "out"))
        manifest = read_manifest(sets[-1])
        assert manifest is not None
        assert [e["path"] for e in manifest["inputs"]] == [
            "b.jsonl",
            "deep/a.jsonl",
            "medical.jsonl",
            "held.jsonl",
        ]
        assert str(tmp_path) not in (sets[-1] / "manifest.json").read_text("utf-8")
        assert all(check.ok for check in verify(sets[-1], inputs=1.0))
    assert fingerprint(sets[0]) == fingerprint(sets[1])
    for path in sets[0].rglob("*.html"):
        assert str(tmp_path) not in path.read_text("utf-8")


def test_a_recipe_with_absolute_paths_gives_the_same_files_from_above_its_inputs_and_through_links(
    tmp_path: Path,
) -> None:
    data = tmp_path / "data"
    first = lay_out(data, tmp_path / "recipe.yaml", str(data))
    second = lay_out(data, tmp_path / "far" / "away" / "recipe.yaml", str(data))
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    places = (first, second, tmp_path / "link" / "recipe.yaml")
    sets = [built(path, tmp_path / f"out{n}" / "set") for n, path in enumerate(places)]
    assert len({str(fingerprint(out)) for out in sets}) == 1


def test_a_moved_folder_keeps_its_manifest_and_finds_its_inputs(tmp_path: Path) -> None:
    lay_out(tmp_path / "one" / "data", tmp_path / "one" / "recipe.yaml", "data")
    first = fingerprint(built(tmp_path / "one" / "recipe.yaml", tmp_path / "one" / "out"))
    shutil.move(tmp_path / "one", tmp_path / "two")
    assert all(check.ok for check in verify(tmp_path / "two" / "out", inputs=1.0))
    shutil.rmtree(tmp_path / "two" / ".datamix")
    assert fingerprint(built(tmp_path / "two" / "recipe.yaml", tmp_path / "two" / "out")) == first


def test_inputs_are_found_by_the_recipe_file_without_a_cache_and_else_verify_says_what_it_needs(
    tmp_path: Path,
) -> None:
    recipe = lay_out(tmp_path / "data", tmp_path / "p" / "recipe.yaml", str(tmp_path / "data"))
    out = built(recipe, tmp_path / "p" / "out", tmp_path / "cache")
    assert all(check.ok for check in verify(out, inputs=1.0))
    manifest = read_manifest(out)
    assert manifest is not None
    paths = input_places(out, manifest).paths
    assert paths[0] == str(tmp_path / "data" / "general" / "b.jsonl")
    recipe.unlink()
    detail = next(c.detail for c in verify(out, inputs=1.0) if c.name == "inputs")
    assert "folder of the recipe file" in detail
    assert str(tmp_path / "p" / ".datamix") in detail
    assert input_places(out, manifest, tmp_path / "cache").paths == paths


def test_a_path_of_a_manifest_in_a_recipe_is_told_to_be_none(tmp_path: Path) -> None:
    recipe = lay_out(tmp_path / "data", tmp_path / "recipe.yaml", "<SOURCE>", tokenizer="data/tokenizer")
    run = datamix("build", recipe, "-o", tmp_path / "out")
    assert run.returncode == 2
    assert "stands for an absolute path" in run.stderr


def test_names_of_files_and_of_paths() -> None:
    files = ["/r/a/x.json", "/r/b.json", "/d/x.json", "/d/e/x.json", "s3://k:p@b/y.json?sig=1", "/s/z.json"]
    paths = ["a/*.json", "b.json", "/d/x.json", "/d/*/x.json", "../s", "s3://k:p@b/*.json"]
    assert name_files(files, paths, "/r") == [
        ("/s/z.json", "z.json"),
        ("/r/a/x.json", "a/x.json"),
        ("/r/b.json", "b.json"),
        ("/d/e/x.json", "e/x.json"),
        ("/d/x.json", "x.json"),
        ("s3://k:p@b/y.json?sig=1", "s3://***@b/y.json?***"),
    ]
    assert name_files(["/d/a/x.json", "/d/b/x.json"], ["/d/a", "/d/b"], "/r") == [
        ("/d/a/x.json", "x.json#0"),
        ("/d/b/x.json", "x.json#1"),
    ]
    for path, published in {
        "/data/zh/*.jsonl": "<SOURCE>/*.jsonl",
        "/data/zh/": "<SOURCE>/zh",
        "~/x.json": "<SOURCE>/x.json",
        "/*/x.json": "<SOURCE>/*/x.json",
        "file:///data/a*": "file://<SOURCE>/a*",
        "zip://a.csv::/data/x.zip": "zip://a.csv::<SOURCE>/x.zip",
        "zip://a.csv::s3://u:p@b/x.zip": "zip://a.csv::s3://***@b/x.zip",
        "../x.json": "../x.json",
        "hf://datasets/a/b@1/c": "hf://datasets/a/b@1/c",
    }.items():
        assert published_path(path) == published
