"""What becomes of records, in whole builds: every rule of the recipe that takes records out is seen to do so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from small import GENERAL, MEDICAL, alpaca, recipe, write_jsonl

from datamix.audit import verify
from datamix.core.errors import DataError, RecipeError
from datamix.jobs.build import build
from datamix.pipeline import prepare_sources as inputs
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe

PLAIN: dict[str, Any] = {"dedupe": None, "validation": None, "encode": {"max_length": 256, "pack": "none"}}


def run(path: Path, name: str = "set") -> dict[str, Any]:
    manifest = build(Recipe.read(path), Options(path.parent / name, path.parent / "cache", workers=1))
    assert [f"{c.name}: {c.detail}" for c in verify(path.parent / name) if not c.ok] == []
    return manifest


def records(folder: Path) -> list[tuple[int, int]]:
    """File and ordinal of every piece below a folder of rows."""
    rows = pq.read_table(folder).column("records").to_pylist()
    return [(piece["file"], piece["record"]) for row in rows for piece in row]


def two(**of_general: Any) -> dict[str, Any]:
    """Both sources, general with further keys."""
    return {
        "general": {"path": "general.jsonl", "weight": 0.5, **of_general},
        "medical": {"path": "medical.jsonl", "weight": 0.5},
    }


def words(number: int, count: int) -> list[str]:
    return [f"word{number}x{k}" for k in range(count)]


def test_max_records_leaves_the_same_sample_whatever_else_is_mixed(tmp_path: Path) -> None:
    manifest = run(recipe(tmp_path, **PLAIN, sources=two(max_records=100)))
    general = manifest["sources"]["general"]
    assert general["unused_by"]["max_records"] == 200
    assert general["available"]["records"] == 100
    assert "max_records" not in manifest["sources"]["medical"]["unused_by"]
    alone = {"general": {"path": "general.jsonl", "max_records": 100, "max_epochs": 1}}
    run(recipe(tmp_path, **PLAIN, sources=alone), "alone")
    taken = {record for file, record in records(tmp_path / "set/train") if file == 0}
    sample = {record for _, record in records(tmp_path / "alone/train")}
    assert taken <= sample
    assert len(sample) == 100
    assert sample != set(range(100))


@pytest.mark.parametrize("limit", [0.6, 0.59])
def test_deduplication_that_removes_too_much_of_a_source_stops_the_build(
    limit: float, tmp_path: Path
) -> None:
    path = recipe(tmp_path, **{**PLAIN, "dedupe": {"exact": True, "max_removed_share": limit}})
    write_jsonl(tmp_path / "medical.jsonl", [*alpaca(GENERAL, 300)[:120], *alpaca(MEDICAL, 80)])
    if limit == 0.6:
        assert run(path)["sources"]["medical"]["removed_by"] == {"exact": 120}
        return
    with pytest.raises(DataError) as stopped:
        run(path)
    text = str(stopped.value)
    assert "would remove 120 of the 200 records of source medical (60.0%, more than" in text
    assert "dedupe.max_removed_share" in text
    assert "Most of them (120) are in general" in text
    assert not (tmp_path / "set/manifest.json").exists()


def test_a_source_of_which_nothing_is_left_is_named_with_what_took_its_records(tmp_path: Path) -> None:
    dedupe = {"exact": True, "max_removed_share": 1, "prefer": ["general"]}
    path = recipe(tmp_path, **{**PLAIN, "dedupe": dedupe, "max_reject_share": 0.5})
    with (tmp_path / "medical.jsonl").open("w") as stream:
        stream.write("not json\n" * 3)
    write_jsonl(tmp_path / "copies.jsonl", alpaca(GENERAL, 300)[:20])
    with (tmp_path / "medical.jsonl").open("a") as stream:
        stream.write((tmp_path / "copies.jsonl").read_text())
    with pytest.raises(
        DataError,
        match=r"medical is left to train on: 3 rejected \(json_syntax 3\), 20 removed \(exact 20\)\. ",
    ):
        run(path)


def test_contaminated_records_leave_training_with_the_share_that_was_found(tmp_path: Path) -> None:
    items = [words(n, 20) for n in range(4)]
    parts = [
        items[0],
        items[1][:15],
        items[2][:9],
        words(9, 20),
    ]  # all of an item, 15 and 9 words of 20, none
    held = [{"instruction": " ".join(part), "output": f"answer {n}"} for n, part in enumerate(parts)]
    path = recipe(
        tmp_path,
        **PLAIN,
        decontaminate={"against": [{"path": "exam.jsonl"}], "ngram": 5, "min_overlap": 0.5},
    )
    write_jsonl(tmp_path / "general.jsonl", [*held, *alpaca(GENERAL, 300)])
    write_jsonl(tmp_path / "exam.jsonl", [{"instruction": " ".join(i), "output": "x"} for i in items])
    manifest = run(path)
    assert manifest["sources"]["general"]["removed_by"] == {"contaminated": 2}
    removed = pq.read_table(tmp_path / "set/removed/general.parquet").to_pylist()
    assert [(r["record"], r["reason"]) for r in removed] == [(0, "contaminated"), (1, "contaminated")]
    assert [r["similarity"] for r in removed] == pytest.approx([1, 0.75])
    assert "exam.jsonl record 1" in removed[1]["detail"]
    assert {(0, 0), (0, 1)}.isdisjoint(records(tmp_path / "set/train"))
    assert {(0, 2), (0, 3)} <= set(records(tmp_path / "set/train"))


def test_near_duplicates_are_listed_with_their_similarity_and_what_stays(tmp_path: Path) -> None:
    text = words(1, 60)
    pair = [{"instruction": " ".join([*text, *more]), "output": "done"} for more in ([], ["end"])]
    path = recipe(tmp_path, **{**PLAIN, "dedupe": {"exact": True, "near": {"threshold": 0.8}}})
    write_jsonl(tmp_path / "general.jsonl", [*alpaca(GENERAL, 100), *pair])
    run(path)
    (removed,) = [
        row
        for row in pq.read_table(tmp_path / "set/removed/general.parquet").to_pylist()
        if row["reason"] == "near"
    ]
    assert (removed["record"], removed["kept_source"], removed["kept_record"]) == (101, "general", 100)
    assert 0.9 < removed["similarity"] < 1


def test_records_that_the_kind_cannot_use_are_refused_by_file(tmp_path: Path) -> None:
    path = recipe(tmp_path, **PLAIN)
    write_jsonl(tmp_path / "medical.jsonl", [{"text": "only text"}] * 5)
    with pytest.raises(
        RecipeError, match=r"sources\.medical: medical\.jsonl holds text records .*kind: pretrain"
    ):
        run(path)


def scored(number: int) -> dict[str, Any]:
    """One prompt with four answers of different scores: six pairs."""
    answers = [f"answer {k} to {number}: " + " ".join(words(10 * number + k, 8)) for k in range(4)]
    return {
        "instruction": " ".join(words(number, 12)),
        "completions": [{"response": a, "overall_score": k + 1} for k, a in enumerate(answers)],
    }


def test_pairs_of_one_record_are_held_out_together(tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        kind="preference",
        sources={"scored": {"path": "scored.jsonl", "format": "ultrafeedback_pairs"}},
        clean=None,
        dedupe=None,
        validation={"records": 3},
        encode={"max_length": 256},
    )
    write_jsonl(tmp_path / "scored.jsonl", [scored(n) for n in range(30)])
    manifest = run(path)
    train, held = records(tmp_path / "set/train"), records(tmp_path / "set/validation")
    assert len(set(held)) in (1, 2, 3)
    assert {held.count(record) for record in held} == {6}
    assert set(held).isdisjoint(train)
    assert manifest["sources"]["scored"]["removed_by"] == {}


def test_an_input_that_changes_while_it_is_read_stops_the_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(tmp_path, **PLAIN)
    scan_sources = inputs.scan_sources

    def grows(context: inputs.BuildContext, works: Sequence[inputs.SourceWork]) -> list[tuple[Any, ...]]:
        found = scan_sources(context, works)
        with (tmp_path / "medical.jsonl").open("a") as stream:
            stream.write('{"instruction": "late", "input": "", "output": "too late"}\n')
        return found

    monkeypatch.setattr(inputs, "scan_sources", grows)
    with pytest.raises(DataError, match=r"medical\.jsonl changed while it was being read"):
        run(path)
    assert not (tmp_path / "set/manifest.json").exists()


def test_replay_gives_the_old_source_its_share_of_the_whole(tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        **PLAIN,
        sources={"general": {"path": "general.jsonl"}, "medical": {"path": "medical.jsonl"}},
        mix={"replay": {"of": "general", "share": 0.2}, "unit": "records"},
    )
    manifest = run(path)
    shares = {name: source["share"] for name, source in manifest["sources"].items()}
    assert shares["general"]["asked"] == pytest.approx(0.2)
    assert shares["general"]["records"] == pytest.approx(0.2, abs=0.005)
    assert manifest["sources"]["medical"]["emitted"]["rows"] == 200
