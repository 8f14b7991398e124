"""Records that are excluded are gone from every derived set, and everything else is as if the recipe had said so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from small import GENERAL, MEDICAL, alpaca, datamix, fingerprint, recipe, write_jsonl

import datamix as api
from datamix.core.errors import DataError, RecipeError
from datamix.recipe import Recipe

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs, a cache, the set ``set`` with an export, and two virtual sets of a sweep."""
    folder = tmp_path_factory.mktemp("built")
    path = recipe(folder, validation={"share": 0.1})
    general = alpaca(GENERAL, 120)
    write_jsonl(folder / "general.jsonl", [*general, general[5]])
    with (folder / "general.jsonl").open("a", encoding="utf-8") as stream:
        stream.write('{"secret of record 121\n')
    write_jsonl(folder / "medical.jsonl", alpaca(MEDICAL, 80))
    value = json.loads(path.read_text())
    value["sources"]["medical"]["license"] = "CC-BY-4.0"
    value["sources"] = dict(reversed(value["sources"].items()))  # in no order of names
    path.write_text(json.dumps(value))
    api.build(path, folder / "set", workers=1)
    api.export(folder / "set", "openai")
    api.sweep(path, "general=0.2,0.8", folder / "rung", workers=1)
    return folder


@pytest.fixture
def home(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "home", copy_function=shutil.copy2)
    return tmp_path / "home"


def _with_key(home: Path, exclude: Any) -> Recipe:
    value = json.loads((home / "recipe.yaml").read_text())
    return Recipe.of(value | {"exclude": exclude}, home)


def _entry(record: int, source: str = "general") -> dict[str, Any]:
    return {"source": source, "file": f"{source}.jsonl", "record": record}


def _outputs(out: Path, number: int) -> bool:
    """Whether the answer of a record of ``general`` is anywhere in the files of a set."""
    answer = alpaca(GENERAL, 120)[number]["output"]
    rows = pq.read_table(out / "train").to_pylist()
    assert rows
    return any(
        answer in path.read_text(errors="replace") for path in out.rglob("*") if path.suffix == ".jsonl"
    )


def test_the_set_is_byte_for_byte_that_of_a_recipe_with_the_key(home: Path, tmp_path: Path) -> None:
    entries = [_entry(n) for n in range(0, 90, 4)]
    api.build(_with_key(home, entries[::-1]), tmp_path / "fresh", workers=1)
    for name in ("general.jsonl", "medical.jsonl"):  # nothing is read again
        (home / name).unlink()
    shutil.rmtree(home / "set" / "openai")
    (home / "set" / "manifest.json").write_text(
        json.dumps(
            {
                **(manifest := json.loads((home / "set" / "manifest.json").read_text())),
                "outputs": [e for e in manifest["outputs"] if e["format"] != "openai"],
                "exports": [],
            }
        )
    )
    tokens = sorted((home / ".datamix" / "store").rglob("tokens.arrow"))
    sets = api.exclude(home / "set", entries, workers=1)
    assert fingerprint(home / "set") == fingerprint(tmp_path / "fresh")
    assert sorted((home / ".datamix" / "store").rglob("tokens.arrow")) == tokens
    assert [out.name for out in sets] == ["set", "rung-general-0.2", "rung-general-0.8"]
    assert repr(sets).count("rung-general") == 2


def test_every_derived_set_and_export_is_without_them_and_verifies(home: Path) -> None:
    held = {r["record"] for p in sorted((home / "set" / "validation").glob("general*")) for row in pq.read_table(p).to_pylist()
            for r in row["records"]}  # fmt: skip
    out = [min(held), min(set(range(120)) - held - {5})]
    assert _outputs(home / "set", out[0])
    (home / "by.jsonl").write_text("".join(json.dumps(_entry(n)) + "\n" for n in out))
    before = json.loads((home / "set" / "manifest.json").read_text())
    done = datamix("exclude", home / "set", "--by", home / "by.jsonl", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert f"{home / 'set'}: 2 records excluded" in done.stdout
    assert 'exclude: {path: "' in done.stdout
    assert not any(_outputs(home / "set", n) for n in out)
    after = json.loads((home / "set" / "manifest.json").read_text())
    assert after["exports"] == before["exports"] == [{"format": "openai", "options": {}}]
    assert {e["format"] for e in after["outputs"]} == {e["format"] for e in before["outputs"]}
    for name in ("set", "rung-general-0.2", "rung-general-0.8"):
        checks = {check.name: check for check in api.verify(home / name)}
        assert all(check.ok for check in checks.values()), [c for c in checks.values() if not c.ok]
        assert checks["excluded"].detail == "2 records of 2 entries: none of them in train/ or validation/"
        manifest = json.loads((home / name / "manifest.json").read_text())
        assert manifest["sources"]["general"]["removed_by"]["excluded"] == 2
        assert manifest["sources"]["general"]["share"]["asked"] == pytest.approx(
            float(name.rsplit("-")[-1]) if "-" in name else 0.7
        )
    again = datamix("exclude", home / "set", "--by", home / "by.jsonl", "--workers", "1")
    assert again.returncode == 0
    assert fingerprint(home / "set")["manifest.json"]


@pytest.mark.parametrize("form", ["file", "license", "sha256"])
def test_a_file_a_licence_or_a_digest_takes_the_whole_source_and_the_others_share_its_weight(
    home: Path, form: str
) -> None:
    manifest = json.loads((home / "set" / "manifest.json").read_text())
    [medical] = [entry for entry in manifest["inputs"] if entry["source"] == "medical"]
    entry = {"file": "medical.jsonl", "license": "cc-by-4.0", "sha256": medical["sha256"]}[form]
    api.exclude(home / "set", [{form: entry}], workers=1)
    after = json.loads((home / "set" / "manifest.json").read_text())
    assert after["sources"]["medical"]["removed_by"] == {"excluded": 80}
    assert {n: s["share"]["asked"] for n, s in after["sources"].items()} == {"general": 1.0, "medical": 0.0}
    assert all(check.ok for check in api.verify(home / "set"))


def test_a_size_that_is_no_longer_there_shrinks_and_shares_stay(home: Path) -> None:
    value = json.loads((home / "recipe.yaml").read_text()) | {"mix": {"size": 10_000}}
    sized = api.build(Recipe.of(value, home), home / "sized", workers=1)
    api.exclude(home / "sized", [_entry(n) for n in range(60)], workers=1)
    after = json.loads((home / "sized" / "manifest.json").read_text())
    size = [sum(s["emitted"]["loss_tokens"] for s in m["sources"].values()) for m in (sized, after)]
    assert size[1] < 0.7 * size[0]
    shares = {name: s["share"]["asked"] for name, s in after["sources"].items()}
    assert shares == pytest.approx({"general": 0.7, "medical": 0.3})
    assert all(check.ok for check in api.verify(home / "sized"))


def test_entries_that_match_nothing_are_told_and_alone_change_nothing(home: Path) -> None:
    before = fingerprint(home / "set")
    bad = [{"file": "genral.jsonl"}, _entry(900), {"license": "GPL"}]
    with pytest.raises(RecipeError, match="no entry matches a record"):
        api.exclude(home / "set", bad)
    assert fingerprint(home / "set") == before
    (home / "by.jsonl").write_text("".join(json.dumps(e) + "\n" for e in [*bad, _entry(1)]))
    done = datamix("exclude", home / "set", "--by", home / "by.jsonl", "--workers", "1")
    assert done.returncode == 0
    told = " ".join(done.stderr.split())
    assert "did you mean general.jsonl?" in told
    assert "the file has 122 records, from 0" in told
    assert "no source has this licence; there are: cc-by-4.0" in told


def test_copies_that_an_excluded_record_had_removed_are_named_with_what_to_add(home: Path) -> None:
    (home / "by.jsonl").write_text(json.dumps(_entry(5)))
    done = datamix("exclude", home / "set", "--by", home / "by.jsonl", "--workers", "1")
    line = json.dumps(_entry(120))
    assert f"  {line}\n" in done.stdout
    (home / "by.jsonl").write_text(f"{json.dumps(_entry(5))}\n{line}\n")
    done = datamix("exclude", home / "set", "--by", home / "by.jsonl", "--workers", "1")
    assert "no longer" not in done.stdout
    assert not _outputs(home / "set", 5)


def test_the_bytes_of_an_excluded_reject_are_withheld(home: Path) -> None:
    rejects = home / "set" / "rejects" / "general.jsonl"
    assert "secret" in rejects.read_text()
    api.exclude(home / "set", [_entry(121), _entry(3)], workers=1)
    assert "secret" not in rejects.read_text()
    assert all(check.ok for check in api.verify(home / "set"))


def test_a_set_from_other_paths_to_the_same_bytes_is_found_by_content(home: Path) -> None:
    other = home / "other"
    other.mkdir()
    shutil.copy(home / "general.jsonl", other / "renamed.jsonl")
    value = json.loads((home / "recipe.yaml").read_text())
    value["sources"] = {"chat": {"path": "renamed.jsonl"}}
    value["tokenizer"] = "../tokenizer"
    api.build(Recipe.of(value, other), home / "chat", workers=1)
    sets = api.exclude(home / "set", [_entry(7)], workers=1)
    assert home / "chat" in sets
    excluded = json.loads((home / "chat" / "manifest.json").read_text())["recipe"]["exclude"]
    assert excluded == [{"source": "chat", "file": "renamed.jsonl", "record": 7}]


def test_verify_finds_an_excluded_record_in_a_set(home: Path) -> None:
    path = home / "set" / "manifest.json"
    manifest = json.loads(path.read_text())
    record = pq.read_table(home / "set" / "train").column("records")[0].as_py()[0]
    entry = manifest["inputs"][record["file"]]
    manifest["recipe"]["exclude"] = [
        {"source": entry["source"], "file": entry["path"], "record": record["record"]}
    ]
    path.write_text(json.dumps(manifest))
    [check] = [check for check in api.verify(home / "set") if check.name == "excluded"]
    assert not check.ok
    assert "is excluded by the recipe and is in the set" in check.detail


def test_a_pruned_cache_is_enough_and_one_that_was_deleted_names_the_build(home: Path) -> None:
    assert datamix("cache", "--prune", "--cache", home / ".datamix").returncode == 0
    assert not list((home / ".datamix" / "store").rglob("signatures.arrow"))
    api.exclude(home / "set", [_entry(2)], workers=1)
    assert all(check.ok for check in api.verify(home / "set"))
    for path in (home / ".datamix" / "sets").glob("*.origin"):
        path.unlink()
    with pytest.raises(DataError, match="Run the same `datamix build RECIPE -o"):
        api.exclude(home / "set", [_entry(4)], workers=1)


def test_a_list_and_a_file_of_it_in_any_order_are_one_recipe(home: Path) -> None:
    entries = [_entry(1), {"file": "b"}, {"license": "x"}]
    (home / "by.jsonl").write_text("\n".join(json.dumps(e) for e in [*entries[::-1], entries[0]]))
    assert _with_key(home, entries).sha256() == _with_key(home, {"path": "by.jsonl"}).sha256()


@pytest.mark.parametrize(
    ("exclude", "words"),
    [
        ([{"record": 3}], r"exclude\.0: takes one of \{source, file, record\}"),
        ([{"sha256": "ab"}], "64 of the digits"),
        ({"path": "none.jsonl"}, "No such file.* one JSON object a line"),
        ({"path": "bad.jsonl"}, "bad.jsonl, line 2: licence is not a key here; did you mean license"),
        ({"path": "torn.jsonl"}, "torn.jsonl, line 1 is no JSON"),
        ([{"file": "a", "record": -1, "source": "s"}], "greater than or equal to 0"),
    ],
)
def test_what_is_no_entry_is_named_with_its_line(home: Path, exclude: Any, words: str) -> None:
    (home / "bad.jsonl").write_text('{"file": "a"}\n{"licence": "x"}\n')
    (home / "torn.jsonl").write_text('{"file": \n')
    with pytest.raises(RecipeError, match=words):
        _with_key(home, exclude)


def test_excluding_all_that_is_there_is_an_error_and_leaves_the_set(home: Path) -> None:
    before = fingerprint(home / "set")
    with pytest.raises(DataError, match="Exclude less of it"):
        api.exclude(home / "set", [{"file": "general.jsonl"}, {"file": "medical.jsonl"}], workers=1)
    assert fingerprint(home / "set") == before


@pytest.mark.parametrize("kind", ["pretrain", "preference", "prompt"])
def test_other_kinds_and_groups_and_stages(kind: str, tmp_path: Path) -> None:
    """A group keeps its weight when one of its sources goes; stages keep theirs."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for name in ("a", "b", "c"):
        pairs = alpaca([f"{name} 问题"], 30)
        rows[name] = [
            {
                "pretrain": {"text": p["instruction"] + p["output"]},
                "preference": {"prompt": p["instruction"], "chosen": p["output"], "rejected": "不知道"},
                "prompt": {"prompt": p["instruction"], "answer": p["output"]},
            }[kind]
            for p in pairs
        ]
    path = recipe(
        tmp_path,
        kind=kind,
        sources={
            "a": {"path": "a.jsonl", "group": "g", "weight": 1, "max_epochs": 4},
            "b": {"path": "b.jsonl", "group": "g", "weight": 3, "max_epochs": 4},
            "c": {"path": "c.jsonl", "weight": 0.5, "max_epochs": 4},
        },
        groups={"g": {"weight": 0.5, "within": "weights"}},
        mix={
            "stages": [
                {"name": "one", "share": 0.5},
                {"name": "two", "share": 0.5, "weights": {"g": 0.2, "c": 0.8}, "ramp": "linear"},
            ]
        },
        encode={"max_length": 64, "pack": "best_fit"} if kind == "pretrain" else {"max_length": 256},
        dedupe=None,
        write=["parquet"],
    )
    for name, values in rows.items():
        write_jsonl(tmp_path / f"{name}.jsonl", values)
    api.build(path, tmp_path / "set", workers=1)
    api.exclude(tmp_path / "set", [{"file": "b.jsonl"}, _entry(4, "c")], workers=1)
    after = json.loads((tmp_path / "set" / "manifest.json").read_text())
    assert after["mixture"]["stages"][0]["weights"] == pytest.approx({"a": 0.5, "b": 0.0, "c": 0.5})
    assert after["sources"]["c"]["removed_by"] == {"excluded": 1}
    assert all(check.ok for check in api.verify(tmp_path / "set"))
    plan = api.plan(
        Recipe.of({**json.loads(path.read_text()), "exclude": [{"file": "b.jsonl"}]}, tmp_path),
        tmp_path / "p",
        cache=tmp_path / "c2",
    )
    assert [line["taken"] > 0 for line in plan["sources"]] == [True, False, True]
