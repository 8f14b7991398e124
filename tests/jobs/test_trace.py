"""A row goes back to the bytes of its records, and says what changed on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small import GENERAL, MEDICAL, TOKENIZER, alpaca, datamix, recipe, write_jsonl

import datamix as api
from datamix.core.errors import RecipeError
from datamix.recipe import Recipe


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of two sources, packed, with a duplicate, a text that cleaning changes and a licence."""
    folder = tmp_path_factory.mktemp("trace")
    path = recipe(folder, validation={"share": 0.1})
    general = alpaca(GENERAL, 60)
    general[7]["output"] += " e\u0301"  # composed by NFC
    general += [general[11], general[11]]
    write_jsonl(folder / "general.jsonl", general)
    write_jsonl(folder / "medical.jsonl", alpaca(MEDICAL, 40))
    value = json.loads(path.read_text())
    value["sources"]["general"] |= {"license": "MIT", "weight": 0.5}
    value["sources"]["medical"] |= {"max_epochs": 3, "weight": 0.5}
    path.write_text(json.dumps(value))
    api.build(path, folder / "set")
    return folder


def _all(out: Path, split: str = "train") -> list[dict[str, object]]:
    rows = sum(pq.read_metadata(p).num_rows for p in (out / split).glob("*.parquet"))
    return [record for row in range(rows) for record in api.trace(out, row, split)["records"]]


def test_every_record_of_every_row_is_found_in_its_file(home: Path) -> None:
    for split in ("train", "validation"):
        for record in _all(home / "set", split):
            content = (home / record["file"]).read_bytes()
            raw = content[slice(*record["bytes"])]
            assert raw == content.split(b"\n")[record["record"]]
            assert record["line"] == record["record"] + 1
            assert record["license"] == ("MIT" if record["source"] == "general" else None)
            assert record["tokens"][0] == 0 < record["tokens"][1]


def test_a_record_that_is_repeated_has_one_place(home: Path) -> None:
    of_medical = [r for r in _all(home / "set") if r["source"] == "medical"]
    places = {(r["record"], tuple(r["bytes"])) for r in of_medical}
    assert len(places) == len({r["record"] for r in of_medical}) < len(of_medical)


def test_steps_say_what_they_changed(home: Path) -> None:
    changed = {r["record"]: r["steps"] for r in _all(home / "set") + _all(home / "set", "validation")}
    [step] = changed[7] if 7 in changed else changed[max(changed)]
    assert (step["step"], step["changed"]) == ("normalize", True)
    assert step["before"].endswith("e\u0301")
    assert step["after"].endswith("\u00e9")
    assert changed[8] == [{"step": "normalize", "changed": False}]


def test_copies_that_were_removed_because_of_a_record_are_named(home: Path) -> None:
    records = _all(home / "set") + _all(home / "set", "validation")
    [kept] = {json.dumps(r): r for r in records if r["source"] == "general" and r["record"] == 11}.values()
    copies = [(c["file"], c["record"], c["reason"]) for c in kept["removed_because_of"]]
    assert copies == [("general.jsonl", 60, "exact"), ("general.jsonl", 61, "exact")]
    assert all(c["similarity"] == 1.0 for c in kept["removed_because_of"])


def test_a_missing_or_changed_input_gives_null_and_exit_code_1(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / ".datamix")  # which knows where the inputs were
    out, general = tmp_path / "copy" / "set", tmp_path / "copy" / "general.jsonl"
    row = next(n for n in range(100) if api.trace(out, n)["records"][0]["source"] == "general")
    assert api.trace(out, row)["records"][0]["steps"] == [{"step": "normalize", "changed": False}]
    general.write_bytes(general.read_bytes().replace(b"egg", b"pie"))
    for change in (lambda: None, general.unlink):
        change()
        done = datamix("trace", out, "--row", row, "--json")
        assert done.returncode == 1
        record = json.loads(done.stdout)["records"][0]
        assert [record[key] for key in ("bytes", "line", "steps")] == [None, None, None]
        assert record["license"] == "MIT"
        assert "the input is missing, or has changed" in datamix("trace", out, "--row", row).stdout


def test_a_row_or_split_that_is_not_there_is_named(home: Path) -> None:
    with pytest.raises(RecipeError, match=r"--row -1: train of .* has \d+ rows, numbered from 0"):
        api.trace(home / "set", -1)
    assert datamix("trace", home / "set", "--row", "0", "--split", "test").returncode == 2


def test_a_virtual_set_is_traced_from_the_cache(home: Path) -> None:
    [out] = api.sweep(home / "recipe.yaml", "general=0.5", home / "rung")
    traced = api.trace(out, 0)["records"][0]
    content = (home / traced["file"]).read_bytes()
    assert json.loads(content[slice(*traced["bytes"])])["output"]
    assert api.trace(out, 0, "validation")["records"]


def _text_set(folder: Path, clean: list[object], **sources: object) -> Path:
    shutil.copytree(TOKENIZER, folder / "tokenizer")
    value = {
        "name": "texts",
        "kind": "pretrain",
        "tokenizer": "tokenizer",
        "sources": sources,
        "clean": clean,
        "encode": {"max_length": 64},
    }
    api.build(Recipe.of(value, folder), folder / "set", cache=folder / "cache")
    return folder / "set"


def test_pieces_of_documents_and_columnar_files_are_traced(tmp_path: Path) -> None:
    texts = [f"第 {n} 篇文章。" + " ".join(str(n * k) for k in range(60)) for n in range(30)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=8)
    (tmp_path / "b.txt").write_text(texts[0] + "<b>加粗</b>", encoding="utf-8")
    out = _text_set(tmp_path, ["html"], a={"path": "a.parquet"}, b={"path": "b.txt"})
    rows = pq.read_metadata(out / "train" / "00000.parquet").num_rows
    pieces = []
    for row in range(rows):
        traced = api.trace(out, row, cache=tmp_path / "cache")
        assert "Row" in repr(traced)
        assert "<table>" in traced._repr_html_()
        pieces += traced["records"]
    for piece in pieces:
        if piece["source"] == "a":
            assert piece["row_group"] == piece["record"] // 8
            assert "bytes" not in piece
        else:
            assert piece["bytes"] == [0, (tmp_path / "b.txt").stat().st_size]
            assert piece["steps"][0]["after"].endswith("加粗")
    assert any(piece["tokens"][0] > 0 for piece in pieces)  # a later part of a document


def test_what_truncation_takes_is_a_step(tmp_path: Path) -> None:
    turns = [{"role": r, "content": f"{r} {n} " + "词" * 40} for n in range(4) for r in ("user", "assistant")]
    write_jsonl(tmp_path / "chat.jsonl", [{"messages": turns}])
    shutil.copytree(TOKENIZER, tmp_path / "tokenizer")
    value = {
        "name": "chat",
        "kind": "sft",
        "tokenizer": "tokenizer",
        "sources": {"chat": {"path": "chat.jsonl"}},
    }
    api.build(Recipe.of(value | {"encode": {"max_length": 200}}, tmp_path), tmp_path / "chat")
    [step] = api.trace(tmp_path / "chat", 0)["records"][0]["steps"]
    assert (step["step"], step["changed"]) == ("max_length", True)
    assert step["before"].startswith("user 0")
    assert len(step["after"]) < len(step["before"])
