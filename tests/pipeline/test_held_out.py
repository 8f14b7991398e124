"""Validation: a share of the input records, groups on one side, and notices where that is not what was meant."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from small import Lines, recipe, write_jsonl

from datamix.audit import verify
from datamix.core.errors import RecipeError
from datamix.jobs.build import build
from datamix.pipeline.held_out import Split, hold_out
from datamix.pipeline.shards import Identities
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe

PLAIN: dict[str, Any] = {"dedupe": None, "encode": {"max_length": 512, "pack": "none"}, "write": ["parquet"]}


def run(path: Path, screen: Lines | None = None) -> dict[str, Any]:
    manifest = build(
        Recipe.read(path), Options(path.parent / "set", path.parent / "cache", workers=1), screen
    )
    assert [f"{c.name}: {c.detail}" for c in verify(path.parent / "set") if not c.ok] == []
    return manifest


def record_ids(folder: Path) -> set[tuple[int, int]]:
    """File and record of every piece below a folder of rows."""
    rows = pq.read_table(folder).column("records").to_pylist()
    return {(piece["file"], piece["record"]) for row in rows for piece in row}


def identities(records: list[int], groups: list[int] | None = None, seed: int = 0) -> Identities:
    """Rows of the input records named, in order."""
    n = len(records)
    keys = np.random.default_rng(seed).integers(0, 256, (n, 16), np.uint8)
    group = None if groups is None else np.array(groups, np.uint64)
    return Identities(np.zeros(n, np.int32), np.array(records, np.int64), keys, group)


@pytest.mark.parametrize("split", [Split(share=0.1), Split(records=20)])
@pytest.mark.parametrize("most", [1, 6, 15])
def test_a_share_is_of_records_whatever_each_of_them_gives(split: Split, most: int) -> None:
    rng = np.random.default_rng(most)
    numbers = rng.integers(1, most + 1, 200)
    shares = []
    for seed in range(30):
        known = identities(np.repeat(np.arange(200), numbers).tolist(), seed=seed)
        alive = np.ones(len(known.record), bool)
        (rows,) = hold_out(split, seed, [alive], [known])
        chosen = set(known.record[rows].tolist())
        assert len(chosen) == 20
        assert set(np.flatnonzero(np.isin(known.record, list(chosen))).tolist()) == set(rows.tolist())
        shares.append(len(rows) / len(alive))
    assert np.mean(shares) == pytest.approx(0.1, abs=0.02)  # records that give more are not chosen more often


def test_records_of_which_parts_are_removed_count_once() -> None:
    known = identities([0] * 5 + [1] * 5 + [2] * 5 + [3] * 5)
    alive = np.ones(20, bool)
    alive[[0, 1, 6]] = False
    (rows,) = hold_out(Split(share=0.25), 1, [alive], [known])
    assert len(set(known.record[rows].tolist())) == 1
    assert alive[rows].all()


def test_groups_are_held_out_whole_to_about_the_share_asked() -> None:
    rng = np.random.default_rng(0)
    groups = np.sort(rng.integers(1, 400, 4000))
    known = identities(list(range(4000)), groups.tolist())
    for share in (0.01, 0.1, 0.3):
        (rows,) = hold_out(Split(share=share, group_by="id"), 3, [np.ones(4000, bool)], [known])
        held = np.zeros(4000, bool)
        held[rows] = True
        assert len(rows) == pytest.approx(share * 4000, abs=8)
        assert not set(groups[held]) & set(groups[~held])


def test_a_group_larger_than_all_that_is_asked_is_passed_over() -> None:
    groups = [7] * 500 + list(range(100, 600))
    known = identities(list(range(1000)), groups)
    for seed in range(10):
        (rows,) = hold_out(Split(share=0.02, group_by="id"), seed, [np.ones(1000, bool)], [known])
        assert len(rows) == 20
        assert rows.min() >= 500


def test_a_group_is_on_one_side_in_every_source() -> None:
    first = identities(list(range(300)), [n % 60 + 1 for n in range(300)])
    second = identities(list(range(80)), [n % 20 + 1 for n in range(80)])
    alive = [np.ones(300, bool), np.ones(80, bool)]
    rows = hold_out(Split(share=0.2, group_by="id"), 5, alive, [first, second])
    assert first.group is not None
    assert second.group is not None
    held = set(first.group[rows[0]]) | set(second.group[rows[1]])
    for known, chosen in zip((first, second), rows, strict=True):
        assert known.group is not None
        assert not held & set(np.delete(known.group, chosen))


def test_a_source_that_is_one_group_keeps_its_records() -> None:
    known = identities(list(range(9)), [4] * 9)
    assert [
        len(rows) for rows in hold_out(Split(share=0.5, group_by="id"), 1, [np.ones(9, bool)], [known])
    ] == [0]


def ultrafeedback(count: int) -> list[dict[str, Any]]:
    """Prompts with four scored completions: six pairs or fewer each."""
    return [
        {
            "instruction": f"Question {n}: what is {n} times {n % 7}?",
            "completions": [
                {"response": f"Answer {n} {k} " + "word " * k, "overall_score": float((n + 2 * k) % 5)}
                for k in range(4)
            ],
        }
        for n in range(count)
    ]


@pytest.mark.parametrize(
    ("validation", "held"), [({"share": 0.1}, 10), ({"share": 0.3}, 30), ({"records": 20}, 20)]
)
def test_pairs_of_one_prompt_count_as_one_record(
    tmp_path: Path, validation: dict[str, Any], held: int
) -> None:
    path = recipe(
        tmp_path,
        kind="preference",
        sources={"s": {"path": "pairs.jsonl", "format": "ultrafeedback_pairs"}},
        validation=validation,
        clean=None,
        **(PLAIN | {"encode": {"max_length": 512}}),
    )
    write_jsonl(tmp_path / "pairs.jsonl", ultrafeedback(100))
    ledger = run(path)["sources"]["s"]["records"]
    assert (ledger["read"], ledger["validation"]) == (100, held)


def test_max_records_counts_records_too(tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        kind="preference",
        sources={"s": {"path": "pairs.jsonl", "format": "ultrafeedback_pairs", "max_records": 40}},
        validation=None,
        clean=None,
        **(PLAIN | {"encode": {"max_length": 512}}),
    )
    write_jsonl(tmp_path / "pairs.jsonl", ultrafeedback(100))
    ledger = run(path)["sources"]["s"]["records"]
    assert (ledger["used"], ledger["unused"]) == (40, 60)


def prefixes(count: int, **fields: Any) -> list[dict[str, Any]]:
    """Conversations, each as four records: its first one, two, three and four exchanges."""
    rows = []
    for n in range(count):
        turns = []
        for k in range(4):
            turns += [
                {"role": "user", "content": f"conversation {n} question {k} about {n * 13}"},
                {"role": "assistant", "content": f"answer {k} of {n}"},
            ]
            rows.append({"messages": list(turns), "conversation_id": n, **fields})
    return rows


def split_of(folder: Path, manifest: dict[str, Any]) -> dict[int, set[str]]:
    """The sides of each conversation of four records."""
    sides: dict[int, set[str]] = defaultdict(set)
    for side in ("train", "validation"):
        for _, record in record_ids(folder / "set" / side):
            sides[record // 4].add(side)
    return sides


@pytest.mark.parametrize("where", ["field", "path", "meta"])
def test_group_by_keeps_a_conversation_on_one_side(tmp_path: Path, where: str) -> None:
    rows = prefixes(50)
    if where != "field":
        name = "extra" if where == "path" else "meta"
        rows = [{**row, name: {"id": row.pop("conversation_id"), "more": "x"}} for row in rows]
    field = {"field": "conversation_id", "path": "extra.id", "meta": "meta.id"}[where]
    path = recipe(
        tmp_path, sources={"s": {"path": "s.jsonl"}}, validation={"share": 0.1, "group_by": field}, **PLAIN
    )
    write_jsonl(tmp_path / "s.jsonl", rows)
    lines = Lines()
    manifest = run(path, lines)
    assert all(len(sides) == 1 for sides in split_of(tmp_path, manifest).values())
    assert manifest["sources"]["s"]["records"]["validation"] == 20
    assert not [line for line in lines.lines if "Validation" in line]
    assert "meta" not in pq.read_table(tmp_path / "set/train").column_names  # read, not carried


def test_group_by_and_fields_that_are_carried_do_not_mix(tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        sources={"s": {"path": "s.jsonl", "keep_meta": ["topic"]}},
        validation={"share": 0.1, "group_by": "conversation_id"},
        **PLAIN,
    )
    write_jsonl(tmp_path / "s.jsonl", prefixes(20, topic="a"))
    run(path)
    assert set(pq.read_table(tmp_path / "set/train").column("meta").to_pylist()) == {'{"topic":"a"}'}


def test_chunks_of_a_document_stay_together_without_repeated_lines(tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        kind="pretrain",
        sources={"s": {"path": "s.jsonl"}},
        validation={"share": 0.2, "group_by": "doc"},
        clean=None,
        **(PLAIN | {"dedupe": {"lines": {"max_documents": 3}}}),
    )
    rows = [
        {"text": f"Common header of all\nchunk {n} of document {n // 5}", "doc": n // 5} for n in range(100)
    ]
    write_jsonl(tmp_path / "s.jsonl", rows)
    run(path)
    held = {record // 5 for _, record in record_ids(tmp_path / "set/validation")}
    assert len(held) == 4
    assert not held & {record // 5 for _, record in record_ids(tmp_path / "set/train")}


def test_a_field_that_no_record_has_is_an_error_of_the_recipe(tmp_path: Path) -> None:
    path = recipe(tmp_path, validation={"share": 0.1, "group_by": "conversation"}, **PLAIN)
    with pytest.raises(
        RecipeError, match=r"validation\.group_by: no record of any source has the field 'conversation'"
    ):
        run(path)


def test_parts_of_one_conversation_on_both_sides_are_told_when_nobody_grouped_them(tmp_path: Path) -> None:
    path = recipe(tmp_path, sources={"s": {"path": "s.jsonl"}}, validation={"share": 0.1}, **PLAIN)
    write_jsonl(tmp_path / "s.jsonl", prefixes(50))
    lines = Lines()
    run(path, lines)
    (notice,) = [line for line in lines.lines if "Validation" in line]
    assert notice.startswith(
        "Validation: 20 of the 20 records held out of s begin with the question of a training record"
    )
    assert "`validation: {group_by: FIELD}`" in notice


def test_nothing_is_told_of_records_that_have_nothing_in_common(tmp_path: Path) -> None:
    lines = Lines()
    run(recipe(tmp_path, validation={"share": 0.1}, **PLAIN), lines)
    assert not [line for line in lines.lines if "Validation" in line]


def test_a_validation_that_takes_much_more_of_the_tokens_than_asked_is_told(tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        kind="pretrain",
        sources={"books": {"path": "books.jsonl"}},
        validation={"share": 0.01},
        clean=None,
        **(PLAIN | {"encode": {"max_length": 64, "pack": "best_fit"}}),
    )
    write_jsonl(tmp_path / "books.jsonl", [{"text": f"Book {n}. " + f"word{n} " * 400} for n in range(6)])
    lines = Lines()
    run(path, lines)
    (notice,) = [line for line in lines.lines if "Validation" in line]
    assert notice.startswith(
        "Validation: 1 of the 6 records of books hold 17% of its tokens, where 1% was asked"
    )
