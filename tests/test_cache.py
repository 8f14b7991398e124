"""The cache: what is in it, and what pruning removes and leaves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from small import recipe

import datamix
from datamix.commands.cli import cli
from datamix.pipeline.store import Store


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(cli, ["cache", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def count(text: str, kind: str) -> int:
    lines = [line for line in text.splitlines() if line.startswith(kind)]
    return int(lines[0][len(kind) :].split()[0]) if lines else 0


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Two virtual sets of different seeds in one cache, each opened with changed weights once."""
    for name, seed in (("stays", 1), ("leaves", 2)):
        build(tmp_path / name, seed)
        reweigh(tmp_path / name)
    return tmp_path / ".datamix"


def build(out: Path, seed: int) -> None:
    path = recipe(out.parent / "raw", seed=seed, write=[], encode={"max_length": 256, "pack": "none"})
    datamix.build(path, out, workers=1, overwrite=True)


def reweigh(out: Path) -> int:
    return len(datamix.open(out, changes=[{"row": 20, "weights": {"medical": 1.0}}]))


def failed(out: Path) -> list[str]:
    return [check.detail for check in datamix.verify(out) if not check.ok]


def test_an_empty_cache_is_said_to_be_empty(tmp_path: Path) -> None:
    assert run("--cache", tmp_path / "none") == f"{tmp_path / 'none'} is empty.\n"
    assert not (tmp_path / "none").exists()


def test_the_table_counts_every_kind_and_its_bytes(cache: Path) -> None:
    text = run("--cache", cache)
    num_orders = len(list((cache / "orders").rglob("*.arrow")))
    assert (count(text, "orders"), count(text, "changed orders"), num_orders) == (2, 2, 2)
    assert count(text, "tokens") == len(list((cache / "store").rglob("tokens.arrow")))
    assert count(text, "in all") == len(Store(cache / "store").finished()) + num_orders


def test_pruning_with_all_sets_in_place_removes_only_what_none_needs(cache: Path) -> None:
    before = set(Store(cache / "store").finished())
    (cache / "store/partial/half").mkdir(parents=True)
    run("--cache", cache, "--prune")
    assert set(Store(cache / "store").finished()) <= before
    assert len(list((cache / "orders").rglob("*.arrow"))) == 2
    assert not (cache / "store/partial").exists()
    for name in ("stays", "leaves"):
        assert failed(cache.parent / name) == []
        assert reweigh(cache.parent / name)


def test_pruning_removes_what_only_a_deleted_set_needed_and_says_how_much(cache: Path) -> None:
    run("--cache", cache, "--prune")
    shutil.rmtree(cache.parent / "leaves")
    (cache / "orders" / "older.arrow").write_bytes(b"x" * 5000)  # where 0.1.0 put them
    before = sum(p.stat().st_size for p in cache.rglob("*") if p.is_file())
    num_before = len(Store(cache / "store").finished())
    said = run("--cache", cache, "--prune")
    store = Store(cache / "store")
    num_removed = num_before - len(store.finished()) + 2  # an order of the deleted set, and the older one
    assert num_removed > 2
    assert said.startswith(f"Removed {num_removed:,} results, ")
    assert said.endswith(f"kept {len(store.finished()):,} that sets need.\n")
    assert sum(p.stat().st_size for p in cache.rglob("*") if p.is_file()) < before - 5000
    assert [p.parent.name for p in (cache / "orders").rglob("*.arrow")] == [
        p.stem for p in (cache / "sets").glob("*.json")
    ]
    states = {p.name.partition("-")[0] for p in (cache / "files").glob("*.json")}
    assert states == {p.stem for p in (cache / "sets").glob("*.json")}
    assert failed(cache.parent / "stays") == []
    assert len(list((cache / "orders").iterdir())) == 1
    assert reweigh(cache.parent / "stays")


def test_a_set_that_another_recipe_replaced_needs_nothing_of_its_first_build(cache: Path) -> None:
    run("--cache", cache, "--prune")
    build(cache.parent / "leaves", 3)
    assert len(list((cache / "sets").glob("*.json"))) == 3
    run("--cache", cache, "--prune")
    assert len(list((cache / "sets").glob("*.json"))) == 2
    assert len(list((cache / "orders").rglob("*.arrow"))) == 1
    assert failed(cache.parent / "leaves") == []
