"""A set is verified by recounting it: what was tampered with is found although every checksum was mended."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import handmade
import jsonschema_rs
import numpy as np
import pyarrow.parquet as pq
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st

from datamix.audit import Check, verify
from datamix.audit.prefix import PrefixDeviation, read_stages
from datamix.core.arrays import IGNORE_INDEX
from datamix.core.errors import RecipeError
from datamix.core.records import OPTIONAL_COLUMNS, row_schema
from datamix.jobs.build import build
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe
from datamix.recipe.schemas import schema_text

KINDS = [("pretrain", "concat"), ("pretrain", "best_fit"), ("sft", "none"), ("sft", "best_fit"), ("preference", "none"), ("prompt", "none")]  # fmt: skip
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def kept_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """One finished set of each kind; tests that change one take a copy."""
    root = tmp_path_factory.mktemp("sets")
    return {(k, p): handmade.build(_folder(root / f"{k}-{p}"), k, p) for k, p in KINDS}


@pytest.fixture
def copied(kept_sets: dict[tuple[str, str], Path], tmp_path: Path) -> Callable[[str, str], Path]:
    def copy(kind: str, pack: str) -> Path:
        shutil.copytree(kept_sets[kind, pack].parent, tmp_path / "set")
        return tmp_path / "set" / "out"

    return copy


def _folder(parent: Path) -> Path:
    parent.mkdir(parents=True)
    return parent / "out"


def _broken(checks: list[Check]) -> dict[str, str]:
    return {c.name: c.detail for c in checks if not c.ok}


def _first_shard(out: Path) -> Path:
    return out / "train/part-00000.parquet"


@pytest.mark.parametrize(("kind", "pack"), KINDS)
def test_a_finished_set_of_every_kind_holds_all_its_promises(
    kept_sets: dict[tuple[str, str], Path], kind: str, pack: str
) -> None:
    checks = verify(kept_sets[kind, pack])
    assert _broken(checks) == {}
    names = [c.name for c in checks]
    assert ("order" in names) == (kind != "pretrain" and pack == "none")  # rows are whole records
    assert [name for name in names if name != "order"] == [
        "manifest", "files", "tokenizer", "recipe", "mixture", "content", "rows", "masks", "sources", "counts", "shares", "stages",
        "prefix bound", "epochs", "ledger", "split", "packing", "not checked",
    ]  # fmt: skip
    assert all(c.detail for c in checks)


def test_a_flipped_byte_is_caught_by_its_hash(copied: Callable[[str, str], Path]) -> None:
    out = copied("sft", "none")
    body = bytearray(_first_shard(out).read_bytes())
    body[len(body) // 2] ^= 1
    _first_shard(out).write_bytes(bytes(body))
    assert "train/part-00000.parquet" in _broken(verify(out))["files"]


def test_a_missing_shard_is_caught_although_the_manifest_no_longer_lists_it(
    copied: Callable[[str, str], Path],
) -> None:
    out = copied("sft", "none")
    _first_shard(out).unlink()
    assert "train/part-00000.parquet is missing" in _broken(verify(out))["files"]
    handmade.mend(out)
    broken = _broken(verify(out))
    assert "files" not in broken
    assert {"counts", "shares", "stages", "ledger"} <= set(broken)


@pytest.mark.parametrize(
    "name",
    [
        "train/part-00000.parquet",
        "validation/medical.parquet",
        "removed/general.parquet",
        "rejects/medical.jsonl",
        "manifest.json",
        "tokenizer/tokenizer.json",
    ],
)
def test_no_damage_to_a_file_stops_the_recount(copied: Callable[[str, str], Path], name: str) -> None:
    """Ten single bytes and two truncations, checksums mended where that can be: always a verdict, never a traceback."""
    out = copied("sft", "best_fit")
    path, manifest = out / name, (out / "manifest.json").read_bytes()
    whole = path.read_bytes()
    damages = [
        whole[: len(whole) * k // 11]
        + bytes([whole[len(whole) * k // 11] ^ 0x15])
        + whole[len(whole) * k // 11 + 1 :]
        for k in range(10)
    ]
    for damaged in [*damages, whole[: len(whole) // 2], b""]:
        path.write_bytes(damaged)
        verdicts = verify(out)
        assert name == "manifest.json" or _broken(verdicts)
        if name != "manifest.json":
            handmade.change(
                out, lambda m: [e.update(_entry(path)) for e in m["outputs"] if e["path"] == name]
            )
            verify(out)
            (out / "manifest.json").write_bytes(manifest)


def _entry(path: Path) -> dict[str, Any]:
    body = path.read_bytes()
    return {"bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}


def test_a_file_that_nobody_listed_is_caught(copied: Callable[[str, str], Path]) -> None:
    out = copied("sft", "none")
    shutil.copy(_first_shard(out), out / "train/part-00002.parquet")
    assert "train/part-00002.parquet is not listed" in _broken(verify(out))["files"]


def test_a_row_moved_between_sources_is_caught(copied: Callable[[str, str], Path]) -> None:
    out = copied("sft", "best_fit")

    def move(rows: Rows) -> Rows:
        medical = next(r for r in rows if r["source"] == "medical")
        return [r | {"source": "general"} if r is medical else r for r in rows]

    handmade.rewrite_rows(_first_shard(out), move)
    handmade.mend(out)
    broken = _broken(verify(out))
    assert "is of source general, but holds record" in broken["sources"]
    assert {"counts", "shares"} <= set(broken)


def test_a_row_moved_with_its_record_ids_is_caught_by_the_ledger(copied: Callable[[str, str], Path]) -> None:
    """The row now names a record of the other source, one that another row already holds."""
    out = copied("sft", "none")

    def move(rows: Rows) -> Rows:
        medical = next(r for r in rows if r["source"] == "medical")
        other = next(r for r in rows if r["source"] == "general")
        moved = medical | {
            "source": "general",
            "records": [medical["records"][0] | {"file": 0, "record": other["records"][0]["record"]}],
        }
        return [moved if r is medical else r for r in rows]

    handmade.rewrite_rows(_first_shard(out), move)
    handmade.mend(out)
    broken = _broken(verify(out))
    assert "has no line in rejects/ or removed/" in broken["ledger"]
    assert "more often than max_epochs allows" in broken["epochs"]


@pytest.mark.parametrize("pack", ["none", "best_fit"])
def test_a_label_unmasked_in_a_question_is_caught_twice(
    copied: Callable[[str, str], Path], pack: str
) -> None:
    out = copied("sft", pack)

    def unmask(rows: Rows) -> Rows:
        rows[3]["labels"][2] = rows[3]["input_ids"][2]
        return rows

    handmade.rewrite_rows(_first_shard(out), unmask)
    handmade.mend(out)
    broken = _broken(verify(out))
    assert "part-00000.parquet row 3 trains a span that ends within a turn, at position 2" in broken["masks"]
    assert "loss_tokens" in broken["counts"]


def test_an_unmasked_label_that_another_masked_one_makes_up_for_is_caught_too(
    copied: Callable[[str, str], Path],
) -> None:
    out = copied("sft", "none")

    def swap(rows: Rows) -> Rows:
        labels = rows[3]["labels"]
        trained = [i for i, x in enumerate(labels) if x != IGNORE_INDEX]
        labels[2], labels[trained[1]] = rows[3]["input_ids"][2], IGNORE_INDEX
        return rows

    handmade.rewrite_rows(_first_shard(out), swap)
    handmade.mend(out)
    assert set(_broken(verify(out))) == {"masks"}


def test_a_masked_label_of_a_document_is_caught(copied: Callable[[str, str], Path]) -> None:
    out = copied("pretrain", "best_fit")

    def mask(rows: Rows) -> Rows:
        rows[0]["labels"][5] = IGNORE_INDEX
        return rows

    handmade.rewrite_rows(_first_shard(out), mask)
    handmade.mend(out)
    assert "row 0 leaves a token untrained" in _broken(verify(out))["rows"]


def _set(keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(manifest: dict[str, Any]) -> None:
        *parents, last = keys.split("/")
        here: Any = manifest
        for key in parents:
            here = here[int(key)] if isinstance(here, list) else here[key]
        here[last] = value(here[last]) if callable(value) else value

    return edit


@pytest.mark.parametrize(
    ("keys", "check"),
    [
        ("sources/medical/emitted/rows", "counts"),
        ("sources/medical/emitted/records", "counts"),
        ("sources/general/emitted/tokens", "counts"),
        ("sources/general/emitted/loss_tokens", "counts"),
        ("sources/general/records/read", "ledger"),
        ("sources/general/records/rejected", "ledger"),
        ("sources/general/records/cleaned", "ledger"),
        ("sources/general/records/removed", "ledger"),
        ("sources/general/records/dropped", "ledger"),
        ("sources/general/records/validation", "ledger"),
        ("sources/general/records/used", "ledger"),
        ("sources/general/records/unused", "ledger"),
        ("sources/general/rejected_by/json_syntax", "ledger"),
        ("sources/general/removed_by/near", "ledger"),
        ("mixture/stages/0/rows", "stages"),
        ("mixture/stages/0/loss_tokens", "stages"),
        ("inputs/0/records", "ledger"),
        ("packing/rows", "packing"),
        ("outputs/4/rows", "files"),
        ("tokenizer/vocab_size", "tokenizer"),
    ],
)
def test_a_count_edited_in_the_manifest_is_caught(
    copied: Callable[[str, str], Path], keys: str, check: str
) -> None:
    out = copied("sft", "none")
    handmade.change(out, _set(keys, lambda count: count + 1))
    assert check in _broken(verify(out))


@pytest.mark.parametrize(
    ("keys", "value", "check"),
    [
        ("sources/medical/share/asked", 0.31, "shares"),
        ("sources/medical/share/loss_tokens", 0.3, "shares"),
        ("sources/medical/epochs", 0.5, "epochs"),
        ("mixture/max_prefix_deviation", 0.5, "prefix bound"),
        ("mixture/bound", 1.0, "prefix bound"),
        ("mixture/bound", 5000.0, "prefix bound"),
        ("mixture/unit", "rows", "manifest"),
        ("packing/fill", 0.9, "packing"),
        ("content_sha256", "0" * 64, "content"),
        ("inputs/0/path", "/absolute/file.jsonl", "manifest"),
    ],
)
def test_a_claim_edited_in_the_manifest_is_caught(
    copied: Callable[[str, str], Path], keys: str, value: Any, check: str
) -> None:
    out = copied("sft", "none")
    handmade.change(out, _set(keys, value))
    assert check in _broken(verify(out))


@pytest.mark.parametrize(("kind", "pack"), [("sft", "none"), ("sft", "best_fit"), ("preference", "none")])
def test_a_validation_row_leaked_into_train_is_caught(
    copied: Callable[[str, str], Path], kind: str, pack: str
) -> None:
    out = copied(kind, pack)
    leaked = pq.read_table(out / "validation/general.parquet").to_pylist()[0]

    def leak(rows: Rows) -> Rows:
        place = next(i for i, r in enumerate(rows) if r["source"] == "general")
        return [*rows[:place], leaked, *rows[place + 1 :]]

    handmade.rewrite_rows(_first_shard(out), leak)
    handmade.mend(out)
    broken = _broken(verify(out))
    assert "is in train/ and in validation/" in broken["split"]
    assert "is used and, in validation/general.parquet, validation too" in broken["ledger"]


def test_a_removed_line_deleted_is_caught(copied: Callable[[str, str], Path]) -> None:
    out = copied("sft", "none")
    handmade.rewrite_rows(out / "removed/medical.parquet", lambda rows: rows[1:])
    handmade.mend(out)
    assert "was read and has no line in rejects/ or removed/" in _broken(verify(out))["ledger"]


def test_a_reject_deleted_is_caught(copied: Callable[[str, str], Path]) -> None:
    out = copied("sft", "none")
    (out / "rejects/general.jsonl").write_text("")
    handmade.mend(out)
    assert "was read and has no line" in _broken(verify(out))["ledger"]


def test_a_duplicate_removed_for_a_record_that_went_itself_is_caught(
    copied: Callable[[str, str], Path],
) -> None:
    out = copied("sft", "none")

    def chain(rows: Rows) -> Rows:
        exact = next(r for r in rows if r["reason"] == "exact")
        near = next(r for r in rows if r["reason"] == "near")
        near["kept_file"], near["kept_record"] = exact["file"], exact["record"]
        return rows

    handmade.rewrite_rows(out / "removed/general.parquet", chain)
    handmade.mend(out)
    assert "was kept, which was removed itself" in _broken(verify(out))["ledger"]


def test_a_row_repeated_beyond_max_epochs_is_caught(copied: Callable[[str, str], Path]) -> None:
    out = copied("pretrain", "best_fit")
    handmade.rewrite_rows(_first_shard(out), lambda rows: [rows[0], *rows])
    handmade.mend(out)
    assert "is used more often than max_epochs allows" in _broken(verify(out))["epochs"]


def test_rows_out_of_order_are_caught_by_the_bound(copied: Callable[[str, str], Path]) -> None:
    out = copied("sft", "none")
    handmade.rewrite_rows(_first_shard(out), lambda rows: sorted(rows, key=lambda r: r["source"]))
    handmade.mend(out)
    broken = _broken(verify(out))
    assert set(broken) == {"prefix bound"}
    assert "more than the bound of" in broken["prefix bound"]


@pytest.mark.parametrize(
    ("kind", "pack", "column", "edit", "told"),
    [
        (
            "sft",
            "best_fit",
            "position_ids",
            lambda v: [*v[:-1], v[-1] + 1],
            "position_ids that do not restart",
        ),
        ("sft", "best_fit", "seq_lengths", lambda v: [sum(v)], "has more or fewer documents than records"),
        ("sft", "best_fit", "labels", lambda v: [7, *v[1:]], "has a label that is neither -100 nor the id"),
        ("sft", "none", "attention_mask", lambda v: [0, *v[1:]], "attention_mask that is not all ones"),
        ("sft", "none", "labels", lambda v: v[:-1], "another number of labels than of input_ids"),
        ("sft", "none", "input_ids", lambda v: [60000, *v[1:]], "holds an id outside of 0..543"),
        (
            "pretrain",
            "concat",
            "records",
            lambda v: v[1:],
            "another number of tokens than its records add up to",
        ),
        ("preference", "none", "prompt_ids", lambda v: v * 20, "exceeds 96 tokens"),
        ("prompt", "none", "prompt_ids", lambda _: [-1], "prompt_ids holds an id outside"),
    ],
)
def test_a_row_that_breaks_a_law_is_named(
    copied: Callable[[str, str], Path],
    kind: str,
    pack: str,
    column: str,
    edit: Callable[[Any], Any],
    told: str,
) -> None:
    out = copied(kind, pack)
    handmade.rewrite_rows(
        _first_shard(out), lambda rows: [rows[0] | {column: edit(rows[0][column])}, *rows[1:]]
    )
    handmade.mend(out)
    broken = _broken(verify(out))["rows"]
    assert told in broken
    assert "train/part-00000.parquet row 0" in broken


def test_a_missing_column_is_told(copied: Callable[[str, str], Path]) -> None:
    out = copied("sft", "none")
    for path in sorted((out / "train").iterdir()):
        pq.write_table(pq.read_table(path).drop_columns(["attention_mask"]), path)
    handmade.mend(out)
    assert "lacks the column attention_mask" in _broken(verify(out))["rows"]


def test_an_unfinished_set_fails_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (check,) = verify(tmp_path)
    assert not check.ok
    assert "manifest.json is missing" in check.detail


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="There is no folder"):
        verify(tmp_path / "nowhere")


def test_the_ledger_of_the_manifest_schema_names_every_fate() -> None:
    fates = json.loads(schema_text("manifest"))["$defs"]["source"]["properties"]["records"]["required"]
    assert fates == ["read", "rejected", "cleaned", "removed", "dropped", "validation", "used", "unused"]


# real builds --------------------------------------------------------------------------------------------------------


def _built(folder: Path, **changes: Any) -> Path:
    build(Recipe.read(small.recipe(folder, **changes)), Options(folder / "out", folder / "cache", workers=1))
    return folder / "out"


@pytest.fixture(scope="module")
def real_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages, packed, with duplicates, a reject and a repeat allowed."""
    folder = tmp_path_factory.mktemp("real")
    stages = [
        {"name": "broad", "share": 0.7},
        {"name": "sharpen", "share": 0.3, "weights": {"general": 0.4, "medical": 0.6}, "ramp": "linear"},
    ]
    small.recipe(folder)
    twice = small.alpaca(small.GENERAL, 300)[:20]
    small.write_jsonl(
        folder / "doubled.jsonl", [*small.alpaca(small.MEDICAL, 230)[200:], *twice, {"instruction": None}]
    )
    sources = {
        "general": {"path": "general.jsonl", "weight": 0.7},
        "medical": {"path": ["medical.jsonl", "doubled.jsonl"], "weight": 0.3, "max_epochs": 2},
    }
    return _built(folder, sources=sources, mix={"stages": stages})


def _swap_sources(rows: Rows) -> Rows:
    return [
        r | {"source": "general" if r["source"] == "medical" else "medical"} if i == 1 else r
        for i, r in enumerate(rows)
    ]


def _unmask(rows: Rows) -> Rows:
    rows[2]["labels"][3] = rows[2]["input_ids"][3]
    return rows


def _relabel_stage(rows: Rows) -> Rows:
    return [r | {"stage": "sharpen"} if i == 0 else r for i, r in enumerate(rows)]


@pytest.mark.parametrize(
    ("folder", "edit", "checks"),
    [
        ("train", _swap_sources, {"sources", "counts", "shares"}),
        ("train", _unmask, {"masks", "counts", "shares", "stages"}),
        ("train", _relabel_stage, {"stages"}),
        ("train", lambda rows: rows[1:], {"counts", "ledger", "packing", "stages"}),
        ("train", lambda rows: rows[::-1], {"stages"}),
        ("removed", lambda rows: rows[1:], {"ledger"}),
        ("validation", lambda rows: rows[1:], {"ledger"}),
    ],
)
def test_a_real_set_is_caught_at_what_was_done_to_it(
    real_set: Path, tmp_path: Path, folder: str, edit: Callable[[Rows], Rows], checks: set[str]
) -> None:
    assert _broken(verify(real_set)) == {}
    out = tmp_path / "out"
    shutil.copytree(real_set, out)
    handmade.rewrite_rows(sorted((out / folder).glob("*.parquet"))[0], edit)
    handmade.mend(out)
    broken = _broken(verify(out))
    assert checks <= set(broken)
    assert not {"files", "content"} & set(broken)


def test_records_that_give_several_pairs_are_counted_once(tmp_path: Path) -> None:
    rows = [
        {
            "instruction": f"{small.MEDICAL[i % 5]} {i}?",
            "completions": [
                {"response": f"{word} {i * 7919}", "overall_score": score} for score, word in enumerate("abc")
            ],
        }
        for i in range(40)
    ]
    (tmp_path / "set").mkdir()
    small.write_jsonl(tmp_path / "set/scored.jsonl", rows)
    sources = {"scored": {"path": "scored.jsonl"}}
    changes = {"kind": "preference", "sources": sources, "encode": {"max_length": 256}, "write": ["parquet"]}
    out = _built(tmp_path / "set", **changes, dedupe=None, validation=None)
    assert pq.read_table(out / "train").num_rows == 80
    assert _broken(verify(out)) == {}
    shutil.copytree(out, tmp_path / "out")
    handmade.rewrite_rows(tmp_path / "out/train/00000.parquet", lambda rows: [*rows, rows[0]])
    handmade.mend(tmp_path / "out")
    assert "has 81 rows in train/, max_epochs allows 80" in _broken(verify(tmp_path / "out"))["epochs"]


def test_documents_split_without_packing_are_whole_sets_too(tmp_path: Path) -> None:
    recipe = Recipe.read(small.ROOT / "samples/pretrain.yaml", ("encode.pack=none", "encode.max_length=64"))
    manifest = build(recipe, Options(tmp_path / "out", tmp_path / "cache", workers=1))
    assert manifest["packing"]["cut_records"] > 0
    assert _broken(verify(tmp_path / "out")) == {}


# schemas ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "packed", "paired", "name"),
    [
        ("pretrain", False, True, "joined"),
        ("sft", True, True, "apart"),
        ("preference", False, True, "pair"),
        ("preference", False, False, "labelled"),
        ("prompt", False, True, "prompt"),
    ],
)
def test_the_published_schema_of_rows_has_the_columns_that_are_written(
    kind: Any, packed: bool, paired: bool, name: str
) -> None:
    shape = json.loads(schema_text("row"))["$defs"][name]
    # rows of both have one shape; weights of tokens are of sft alone
    of = "sft" if kind == "pretrain" else kind
    everything = row_schema(of, packed, paired, OPTIONAL_COLUMNS)
    assert list(shape["properties"]) == everything.names
    assert shape["required"] == row_schema(kind, packed, paired).names


@pytest.mark.parametrize(("kind", "pack"), KINDS)
def test_rows_follow_their_published_schema(
    kept_sets: dict[tuple[str, str], Path], kind: str, pack: str
) -> None:
    validator = jsonschema_rs.validator_for(json.loads(schema_text("row")))
    rows = pq.read_table(kept_sets[kind, pack] / "train").to_pylist()
    assert [e.message for row in rows for e in validator.iter_errors(row)] == []
    del rows[0]["stage"]
    assert not validator.is_valid(rows[0])


# prefixes -----------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 50)), min_size=1, max_size=60),
    st.lists(st.integers(1, 9), min_size=3, max_size=3),
    st.integers(1, 10),
)
@settings(max_examples=100, deadline=None)
def test_the_prefix_deviation_is_the_largest_over_all_rows(
    rows: list[tuple[int, int]], weights: list[int], size: int
) -> None:
    shares = [w / sum(weights) for w in weights]
    stage = {
        "name": "main",
        "weights": dict(zip("abc", shares, strict=True)),
        "rows": len(rows),
        "tokens": 10**6,
    }
    prefix = PrefixDeviation(read_stages({"unit": "tokens", "stages": [stage]}, list("abc")))
    for i in range(0, len(rows), size):
        source, cost = zip(*rows[i : i + size], strict=True)
        prefix.add(0, np.array(source), np.array(cost))
    emitted, worst = [0, 0, 0], 0.0
    for source, cost in rows:
        emitted[source] += cost
        worst = max(worst, *(abs(e - s * sum(emitted)) for e, s in zip(emitted, shares, strict=True)))
    assert prefix.worst == pytest.approx(worst)


def test_a_deficit_is_carried_from_one_stage_into_the_next() -> None:
    """10 units at 50 %, then 10 at 100 %/0 %-free weights 80 %: a source that got nothing at first is owed 5."""
    stages = [
        {"name": "one", "weights": {"a": 0.5, "b": 0.5}, "rows": 2, "tokens": 10, "size": 10},
        {"name": "two", "weights": {"a": 0.8, "b": 0.2}, "rows": 2, "tokens": 10, "size": 10},
    ]
    prefix = PrefixDeviation(read_stages({"unit": "tokens", "stages": stages}, ["a", "b"]))
    prefix.add(0, np.array([0, 0]), np.array([5, 5]))
    assert prefix.worst == pytest.approx(5.0)
    prefix.add(1, np.array([0]), np.array([10]))  # quota of b: 5 + 2
    assert prefix.worst == pytest.approx(7.0)


def test_counting_begins_anew_where_a_source_leaves() -> None:
    stages = [
        {"name": "one", "weights": {"a": 0.5, "b": 0.5}, "rows": 2, "tokens": 10, "size": 10},
        {"name": "two", "weights": {"a": 1.0}, "rows": 2, "tokens": 10, "size": 10},
    ]
    prefix = PrefixDeviation(read_stages({"unit": "tokens", "stages": stages}, ["a", "b"]))
    prefix.add(0, np.array([0, 1]), np.array([6, 4]))
    worst = prefix.worst
    prefix.add(1, np.array([0, 0]), np.array([5, 5]))
    assert prefix.worst == worst == pytest.approx(3.0)


def test_a_linear_ramp_owes_the_integral_of_its_weights() -> None:
    stages = [
        {"name": "one", "weights": {"a": 0.8, "b": 0.2}, "rows": 1, "tokens": 10, "size": 10},
        {
            "name": "two",
            "weights": {"a": 0.2, "b": 0.8},
            "rows": 2,
            "tokens": 10,
            "size": 10,
            "ramp": "linear",
            "ramp_from": {"a": 0.8, "b": 0.2},
        },
    ]
    prefix = PrefixDeviation(read_stages({"unit": "tokens", "stages": stages}, ["a", "b"]))
    prefix.add(0, np.array([0, 1]), np.array([8, 2]))
    after_one = prefix.worst
    prefix.add(1, np.array([0, 1]), np.array([5, 5]))  # quota of a at 20: 8 + (0.8 + 0.2) / 2 * 10 = 13
    assert after_one == pytest.approx(1.6)
    assert prefix._emitted.tolist() == [13, 7]
    assert prefix._track.quota(np.array([20]))[:, 0].tolist() == pytest.approx([13.0, 7.0])
