"""A change costs what it changes, also in a tree of many small files: tasks that share no border with an edit stay."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import alpaca, recipe, write_jsonl

from datamix import Recipe
from datamix.jobs.build import build
from datamix.pipeline import prepare
from datamix.pipeline.grouping import group_files
from datamix.pipeline.steps import Options
from datamix.pipeline.store import Store

LIMIT = 100
FILES = st.lists(
    st.tuples(st.integers(0, 10**9), st.integers(1, 60)), min_size=1, max_size=300, unique_by=lambda f: f[0]
)


def groups(files: list[tuple[int, int]]) -> list[tuple[tuple[int, int], ...]]:
    ranges = group_files([str(name) for name, _ in files], [size for _, size in files], LIMIT)
    assert [i for group in ranges for i in group] == list(range(len(files)))
    return [tuple(files[i] for i in group) for group in ranges]


@given(FILES)
def test_groups_cover_the_files_in_order_and_weigh_at_most_the_limit(files: list[tuple[int, int]]) -> None:
    for group in groups(files):
        assert len(group) == 1 or sum(size for _, size in group) <= LIMIT


@given(FILES, st.data(), st.sampled_from(["add", "change", "delete"]))
@settings(max_examples=300)
def test_an_edit_makes_new_groups_only_of_files_beside_it(
    files: list[tuple[int, int]], data: st.DataObject, edit: str
) -> None:
    at = data.draw(st.integers(0, len(files) - (edit != "add")))
    new = (10**9 + 1, data.draw(st.integers(1, 60)))
    after = {
        "add": [*files[:at], new, *files[at:]],
        "change": [*files[:at], new, *files[at + 1 :]],
        "delete": [*files[:at], *files[at + 1 :]],
    }[edit]
    known = set(groups(files))
    again = [f for group in groups(after) if group not in known for f in group]
    before = [size for name, size in files[:at] if (name, size) in again]
    behind = [size for name, size in files[at:] if (name, size) in again]
    assert sum(before) <= LIMIT
    assert sum(behind) <= LIMIT


@pytest.mark.parametrize("name", ["0000-first.jsonl", "0500x-middle.jsonl", "9999-last.jsonl"])
def test_a_new_small_file_re_encodes_only_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(prepare, "_GROUP_BYTES", 64 << 10)
    path = recipe(tmp_path, sources={"all": {"path": "tree/*.jsonl"}}, dedupe=None)
    for n in range(120):
        write_jsonl(tmp_path / "tree" / f"{n * 8:04d}.jsonl", alpaca([f"问题 {n}", f"question {n}"], 6))
    options = Options(tmp_path / "set", tmp_path / "cache", 1)
    build(Recipe.read(path), options)
    store = Store(tmp_path / "cache" / "store")
    before = set(store.finished())
    write_jsonl(tmp_path / "tree" / name, alpaca(["新的", "new"], 6))
    build(Recipe.read(path), options)
    read = [r for k in set(store.finished()) - before if (r := store.find(k)) and "read" in r.counts]
    assert 6 <= sum(sum(r.counts["read"]) for r in read) <= 6 * (1 + 2 * 16)  # 64 KiB hold 16 files of 4 KiB


def test_equal_files_in_a_row_are_cut_too() -> None:
    same = hashlib.sha256(b"x").hexdigest()
    assert max(len(group) for group in group_files([same] * 1000, [10] * 1000, LIMIT)) <= 10
