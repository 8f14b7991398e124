"""Tasks as JSON: what a worker reads is what the build wrote, and nothing but a task of this build is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small

from datamix.core.contracts import Receipt, Task
from datamix.core.errors import DataError, MachineError
from datamix.jobs.build import build
from datamix.pipeline import task_files
from datamix.pipeline.engine import LocalEngine
from datamix.pipeline.steps import Options
from datamix.pipeline.task_files import TaskReader, TaskWriter, check_environment, environment
from datamix.recipe import Recipe


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """Every task of a build that uses all phases but those of plans."""
    seen: list[Task] = []
    run = LocalEngine.run

    def listen(self: LocalEngine, tasks: Iterable[Task]) -> Iterator[tuple[int, Receipt]]:
        seen.extend(tasks := list(tasks))
        return run(self, tasks)

    monkeypatch.setattr(LocalEngine, "run", listen)
    small.write_jsonl(tmp_path / "evals.jsonl", [{"text": "a page that nobody trained on, with some words"}])
    steps: list[Any] = [{"normalize": {"unicode": "NFC"}}, {"length": {"min_chars": 2}}, {"pii": {}}]
    texts = [{"text": f"Page {n} on boiled eggs.\nAll rights reserved, everywhere.\n"} for n in range(40)]
    small.write_jsonl(tmp_path / "pages.jsonl", texts)
    recipe = small.recipe(
        tmp_path,
        kind="pretrain",
        sources={
            "pages": {"path": "pages.jsonl", "weight": 1},
            "general": {"path": "general.jsonl", "weight": 1},
        },
        clean=steps,
        dedupe={"exact": True, "lines": {"max_documents": 4}},
        decontaminate={"against": [{"path": "evals.jsonl"}]},
        encode={"max_length": 32},
    )
    build(Recipe.read(recipe), Options(tmp_path / "out", tmp_path / "cache", 1))
    small.recipe(tmp_path, encode={"max_length": 100, "overlong": "truncate"}, mix={"size": 500})
    build(Recipe.read(recipe), Options(tmp_path / "out2", tmp_path / "cache", 1))
    return seen


def test_what_a_worker_reads_is_the_task_that_the_build_wrote(
    tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {task_files._NAMES[t.call] for t in tasks} == task_files.CALLS.keys() - {"estimate"}
    for limit in (10**9, 0):  # all in the file; what many tasks hold alike beside it
        monkeypatch.setattr(task_files, "_SHARED_CHARS", limit)
        for task in tasks:
            out = task.home.parent if task.home.name == ".building" else tmp_path
            text = TaskWriter(tmp_path).text(task)
            assert TaskReader(tmp_path, tmp_path / "cache", out).task(text) == task


def test_what_many_tasks_hold_alike_is_written_once(
    tasks: list[Task], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_files, "_SHARED_CHARS", 0)
    shared = tmp_path / "shared"
    shared.mkdir()
    writer = TaskWriter(shared)
    writing = [t for t in tasks if t.call is task_files.CALLS["write"] and t.home.parent.name == "out"]
    texts = [writer.text(task) for task in writing]
    assert len(texts) >= 4
    # two splits, and the sources in them
    assert len(list(shared.iterdir())) <= 2 + 2 * 3
    assert max(map(len, texts)) < 700


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"call": "os.system"}, "os.system"),
        ({"home": "/etc"}, "its results would go to /etc"),
        ({"home": "/work/.building"}, "its results would go to /work/.building"),
        ({"key": "../../../../etc/passwd"}, "its key is none"),
        ({"weight": True}, "'True' is no int"),
        ({"format": 2}, "it has other fields"),
        ({"more": 1}, "it has other fields"),
        ({"spec": {"paths": ["a"]}}, "ScanSpec has other fields"),
        ({"spec": {"shared": "../secret"}}, "is no name"),
        ({"spec": []}, "'[]' is no dict"),
    ],
)
def test_a_file_that_is_no_task_of_the_build_is_refused(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    spec = {
        "paths": ["a"],
        "states": [[1]],
        "container": None,
        "format": None,
        "encoding": None,
        "columns": [],
    }
    fine = {"format": 1, "call": "scan", "label": "scan a", "key": "0" * 64, "home": str(tmp_path / "store"),
            "weight": 1, "spec": spec}  # fmt: skip
    reader = TaskReader(tmp_path, tmp_path, tmp_path / "out")
    assert reader.task(json.dumps(fine)).spec.paths == ("a",)
    with pytest.raises(DataError) as error:
        reader.task(json.dumps(fine | change))
    assert says in str(error.value)
    for wrong in ({"paths": "a"}, {"states": [["1"]]}, {"columns": [["a"]]}, {"format": 3}):
        with pytest.raises(DataError):
            reader.task(json.dumps(fine | {"spec": spec | wrong}))


def test_other_versions_are_named_in_one_sentence() -> None:
    check_environment(environment(), "Worker on a")
    with pytest.raises(MachineError) as error:
        check_environment(environment() | {"pyarrow": "1.0", "tokenizers": "0.1"}, "Worker on a")
    assert str(error.value).startswith("Worker on a: pyarrow is ")
    assert "and 1.0 where the build was started (and tokenizers)" in str(error.value)
