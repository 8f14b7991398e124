"""A plan against the build that follows: what a source holds, within its margin, on layouts that mislead a sample."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small import GENERAL, Lines, alpaca, recipe, write_jsonl

from datamix.core.errors import DataError
from datamix.jobs.build import build
from datamix.pipeline import planning, prepare, sampling
from datamix.pipeline.estimate import _sampled, _strata
from datamix.pipeline.planning import make_plan
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe
from datamix.reporting.summaries import plan_table


def text(rng: random.Random, num_words: int) -> str:
    return " ".join(
        rng.choice(["alpha", "beta", "天气", "医生", "gamma delta", "x1y2z3"]) for _ in range(num_words)
    )


def texts(count: int, seed: int = 1) -> list[dict[str, Any]]:
    """Documents of very unequal length."""
    rng = random.Random(seed)
    return [{"text": text(rng, int(rng.lognormvariate(3, 1.3)) + 2)} for _ in range(count)]


def sorted_by_length(folder: Path) -> None:
    write_jsonl(folder / "s/a.jsonl", sorted(texts(1500), key=lambda row: len(row["text"])))


def one_huge_record(folder: Path) -> None:
    write_jsonl(folder / "s/a.jsonl", [*texts(300), {"text": text(random.Random(2), 200_000)}])


def many_tiny_files(folder: Path) -> None:
    for number, row in enumerate(texts(300)):
        write_jsonl(folder / f"s/{number:04}.jsonl", [row])


def mostly_copies(folder: Path) -> None:
    write_jsonl(folder / "s/a.jsonl", [row for row in texts(400) for _ in range(3)])


def parquet(folder: Path) -> None:
    (folder / "s").mkdir()
    pq.write_table(
        pa.Table.from_pylist(texts(1500)), folder / "s/a.parquet", compression="zstd", row_group_size=100
    )


def compare(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The plan's line and the build's amounts of the only source; the plan is within its margin, and 5 %."""
    options = Options(path.parent / "set", path.parent / "cache", 1)
    plan = make_plan(Recipe.read(path), options, False, None, Lines())
    manifest = build(Recipe.read(path), options)
    (line,), available = plan["sources"], manifest["sources"]["s"]["available"]
    for unit in ("tokens", "loss_tokens"):
        assert abs(line[unit] - available[unit]) <= line["margins"][unit] + 1, unit
        assert line[unit] == pytest.approx(available[unit], rel=0.05)
    assert plan["total"] == pytest.approx(sum(s["size"] for s in manifest["mixture"]["stages"]), rel=0.05)
    out = sum(p.stat().st_size for p in (path.parent / "set").rglob("*") if p.is_file())
    assert out / 2 < plan["out_bytes"] + 100_000 < 2 * out + 400_000
    return line, available


LAYOUTS = [sorted_by_length, one_huge_record, many_tiny_files, mostly_copies, parquet]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_plan_is_right_on_layouts_that_mislead_a_sample(
    tmp_path: Path, layout: Callable[[Path], None]
) -> None:
    path = recipe(
        tmp_path,
        kind="pretrain",
        sources={"s": {"path": "s/"}},
        clean=None,
        encode={"max_length": 256, "pack": "best_fit"},
    )
    layout(tmp_path)
    compare(path)


@pytest.mark.parametrize("max_length", [64, 100, 2048])
def test_a_plan_counts_what_does_not_fit(tmp_path: Path, max_length: int) -> None:
    path = recipe(
        tmp_path,
        sources={"s": {"path": "s.jsonl"}},
        encode={"max_length": max_length, "pack": "none"},
        validation=None,
    )
    write_jsonl(tmp_path / "s.jsonl", alpaca(GENERAL, 1500))
    line, available = compare(path)
    assert abs(line["records"] - available["records"]) <= line["margins"]["records"] + 1


def test_a_plan_stops_where_nothing_fits_as_the_build_does(tmp_path: Path) -> None:
    path = recipe(tmp_path, encode={"max_length": 10, "pack": "none"})
    with pytest.raises(DataError, match="Nothing of source general would be left"):
        make_plan(Recipe.read(path), Options(tmp_path / "set", tmp_path / "cache", 1), False, None, Lines())


def test_the_build_finds_what_the_plan_prepared(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    options = Options(tmp_path / "set", tmp_path / "cache", 1)
    make_plan(Recipe.read(path), options, False, None, Lines())
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache/store").glob("??/*")}
    build(Recipe.read(path), options)
    after = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "cache/store").glob("??/*")}
    assert {name: after[name] for name in before} == before
    assert not list((tmp_path / "set").glob("nothing"))


def test_duplicates_and_held_out_records_are_not_counted(tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        sources={"s": {"path": "s.jsonl"}},
        encode={"max_length": 512, "pack": "none"},
        validation={"share": 0.5},
    )
    write_jsonl(tmp_path / "s.jsonl", [row for row in alpaca(GENERAL, 200) for _ in range(2)])
    plan = make_plan(
        Recipe.read(path), Options(tmp_path / "set", tmp_path / "cache", 1), False, None, Lines()
    )
    assert plan["sources"][0]["records"] == 100


@pytest.mark.parametrize("layout", LAYOUTS[2:])
def test_large_inputs_are_sampled_over_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(planning, "_PREPARE_BYTES", 0)
    monkeypatch.setattr(sampling, "_SAMPLE_BYTES", 30_000)
    monkeypatch.setattr(prepare, "_GROUP_BYTES", 10_000)
    path = recipe(
        tmp_path,
        kind="pretrain",
        sources={"s": {"path": "s/"}},
        clean=None,
        dedupe=None,
        validation=None,
        encode={"max_length": 256, "pack": "best_fit"},
    )
    layout(tmp_path)
    compare(path)


def test_six_books_are_told_before_they_are_built(tmp_path: Path) -> None:
    path = recipe(
        tmp_path,
        kind="pretrain",
        sources={"s": {"path": "s.jsonl"}},
        validation={"share": 0.01},
        dedupe=None,
        clean=None,
        encode={"max_length": 64, "pack": "best_fit"},
    )
    write_jsonl(tmp_path / "s.jsonl", [{"text": f"Book {n}. " + f"word{n} " * 400} for n in range(6)])
    plan = make_plan(
        Recipe.read(path), Options(tmp_path / "set", tmp_path / "cache", 1), False, None, Lines()
    )
    assert "Validation: 1 of the 6 records of s hold 17% of its tokens, where 1% was asked" in plan_table(
        plan
    )


def test_margins_hold_19_times_of_20() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(300):
        sizes = np.maximum(1, rng.lognormal(5, 1.2, 5000)).astype(np.int64)
        tokens = sizes * rng.uniform(0.2, 0.4, 5000)
        stratum = _strata(sizes)
        at = _sampled(stratum, np.uint64(trial * 7919 + 13))
        total = variance = 0.0
        for number in np.unique(stratum):
            whole, some = stratum == number, at[stratum[at] == number]
            ratio = tokens[some].sum() / sizes[some].sum()
            total += ratio * sizes[whole].sum()
            if whole.sum() > len(some):
                spread = ((tokens[some] - ratio * sizes[some]) ** 2).sum() / (len(some) - 1)
                variance += whole.sum() ** 2 * (1 - len(some) / whole.sum()) * spread / len(some)
        inside += abs(total - tokens.sum()) <= 2.1 * variance**0.5
    assert inside >= 0.93 * 300
