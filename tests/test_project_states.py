"""Any sequence of what people do to a project: after each step its sets verify, or the last command said why not.

Hypothesis adds, changes and deletes inputs, changes the recipe, builds, interrupts builds, exports, prunes, moves and renames sets
and damages files. A set that was built last from what is there now has the bytes of a build from an empty cache. The long form:
`pytest -m slow tests/test_project_states.py`, minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from small import GENERAL, MEDICAL, TOKENIZER, alpaca, fingerprint, write_jsonl

from datamix import Recipe, verify
from datamix.core.errors import DataError, DatamixError
from datamix.jobs.build import build
from datamix.pipeline.built_sets import prune
from datamix.pipeline.exporting import export, parse_format
from datamix.pipeline.steps import Options

FORMATS = ["jsonl", "trl", "arrow", "llamafactory", "webdataset", "parquet"]
CHANGES: dict[str, list[Any]] = {
    "seed": [1, 2],
    "encode": [
        {"max_length": 128},
        {"max_length": 256, "pack": "best_fit"},
        {"max_length": 96, "pack": "concat"},
    ],
    "dedupe": [None, {"exact": True}, {"exact": True, "prefer": ["two"]}],
    "validation": [None, {"share": 0.1}, {"records": 3}],
    "clean": [[], [{"length": {"min_chars": 12}}], [{"normalize": {"unicode": "NFC"}}]],
    "write": [["parquet"], ["parquet", "jsonl"], [], ["arrow"]],
    "mix": [{}, {"size": {"epochs": {"two": 1}}}, {"weights": "unimax"}, {"unit": "records"}],
    "name": ["first", "second"],
}


class Killed(BaseException):
    """Stands for the end of the process: nothing of datamix handles it."""


class Project(RuleBasedStateMachine):
    """A folder with two sources, a recipe, a cache and some sets."""

    sets = Bundle("sets")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="project-"))
        self.cache = self.root / ".datamix"
        self.recipe: dict[str, Any] = {
            "name": "first", "kind": "sft", "tokenizer": "tokenizer", "encode": {"max_length": 128},
            "sources": {"one": {"path": "one"}, "two": {"path": "two/*.jsonl", "max_epochs": 2}},
        }  # fmt: skip
        self.broken: set[str] = set()  # sets that were damaged or lost their cache since they were built
        self.refused = ""  # what the last command said
        self.touched: list[str] = []  # sets to look at after this step

    @initialize()
    def begin(self) -> None:
        shutil.copytree(TOKENIZER, self.root / "tokenizer")
        write_jsonl(self.root / "one" / "a.jsonl", alpaca(GENERAL, 24))
        write_jsonl(self.root / "two" / "a.jsonl", alpaca(MEDICAL, 18))

    def teardown(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def attempt(self, command: Callable[[], Any], name: str = "") -> bool:
        """Run a command that may be refused, with a reason."""
        self.refused, code = "", 0
        try:
            command()
        except DatamixError as error:
            event(f"refused: {str(error)[:60]}")
            self.refused, code = str(error), error.exit_code
        if self.refused:
            assert code in (2, 3), self.refused
            assert len(self.refused) > 20
            return False
        event("done")
        self.touched.append(name)
        return True

    def build(self, name: str, cache: Path | None = None) -> None:
        recipe = Recipe.of({k: v for k, v in self.recipe.items() if v is not None}, self.root)
        build(recipe, Options(self.root / name, cache or self.cache, 1, overwrite=True))

    @rule(
        source=st.sampled_from(["one", "two"]),
        name=st.sampled_from("abc"),
        first=st.integers(0, 40),
        size=st.integers(0, 20),
    )
    def write_input(self, source: str, name: str, first: int, size: int) -> None:
        rows = alpaca(GENERAL if source == "one" else MEDICAL, first + size)[first:]
        path = write_jsonl(self.root / source / f"{name}.jsonl", rows)
        if size % 7 == 6:
            path.write_text(path.read_text("utf-8") + "not a record\n", encoding="utf-8")

    @rule(source=st.sampled_from(["one", "two"]), name=st.sampled_from("abc"))
    def delete_input(self, source: str, name: str) -> None:
        (self.root / source / f"{name}.jsonl").unlink(missing_ok=True)

    @rule(
        change=st.sampled_from(sorted(CHANGES)).flatmap(
            lambda key: st.sampled_from([(key, value) for value in CHANGES[key]])
        )
    )
    def change_recipe(self, change: tuple[str, Any]) -> None:
        self.recipe[change[0]] = change[1]

    @rule(target=sets, name=st.sampled_from(["out", "other", "deep/out"]))
    def build_set(self, name: str) -> str:
        if self.attempt(lambda: self.build(name), name):
            self.broken.discard(name)
        return name

    @rule(target=sets, name=st.sampled_from(["out", "other"]), step=st.integers(0, 60))
    def kill_build(self, name: str, step: int) -> str:
        """A build that ends at the n-th rename; what is left verifies, and the next build completes it."""
        real, left = os.rename, [step]

        def rename(*arguments: Any, **options: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            real(*arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            for function in ("rename", "replace"):
                patch.setattr(os, function, rename)
            try:
                ended = self.attempt(lambda: self.build(name), name)
            except Killed:
                ended = False
        if ended:
            self.broken.discard(name)
        elif (self.root / name / "manifest.json").exists():
            self.touched.append(name)
        return name

    @rule(name=sets, form=st.sampled_from(FORMATS))
    def export_set(self, name: str, form: str) -> None:
        self.attempt(lambda: export(self.root / name, [parse_format(form)], self.cache, 1), name)

    @rule()
    def prune_cache(self) -> None:
        self.attempt(lambda: prune(self.cache))
        self.touched += [name for name in self.all_sets() if name not in self.broken]

    @rule()
    def delete_cache(self) -> None:
        shutil.rmtree(self.cache, ignore_errors=True)
        self.broken |= {name for name in self.all_sets() if self.manifest(name).get("virtual")}

    @rule(target=sets, name=consumes(sets), to=st.sampled_from(["out", "other", "renamed", "moved/set"]))
    def move_set(self, name: str, to: str) -> str:
        if not (self.root / name).exists() or (self.root / to).exists():
            return name
        (self.root / to).parent.mkdir(exist_ok=True)
        os.rename(self.root / name, self.root / to)
        if name in self.broken or self.manifest(to).get("virtual"):
            self.broken.discard(name)
            self.broken.add(to)  # the cache of a virtual set is beside its place
        self.touched.append(to)
        return to

    @rule(name=sets, number=st.integers(0, 99), how=st.sampled_from(["flip", "cut", "delete"]))
    def damage_file(self, name: str, number: int, how: str) -> None:
        files = sorted(entry["path"] for entry in self.manifest(name).get("outputs", []))
        if not files:
            return
        path = self.root / name / files[number % len(files)]
        if not path.is_file() or path.stat().st_size == 0:
            return
        content = bytearray(path.read_bytes())
        content[number % len(content)] ^= 1
        path.unlink()
        if how != "delete":
            path.write_bytes(content if how == "flip" else content[:-1])
        assert not all(check.ok for check in verify(self.root / name)), f"{path} was damaged and verifies"
        self.broken.add(name)

    @rule(name=sets)
    def build_from_nothing(self, name: str) -> None:
        """The set as it is built now, and the same from an empty cache: equal bytes."""
        if not self.attempt(lambda: self.build(name), name):
            return
        self.broken.discard(name)
        with tempfile.TemporaryDirectory(prefix="fresh-") as folder:
            recipe = Recipe.of({k: v for k, v in self.recipe.items() if v is not None}, self.root)
            out = Path(folder) / "set"
            build(recipe, Options(out, Path(folder) / "cache", 1))
            fresh, here = fingerprint(out), fingerprint(self.root / name)
            listed = {entry["path"] for entry in self.manifest(name)["outputs"]}
            exported = listed - {
                entry["path"] for entry in json.loads((out / "manifest.json").read_bytes())["outputs"]
            }
            if not exported:  # an export is listed in the manifest
                assert {path: here.get(path) for path in fresh} == fresh

    def manifest(self, name: str) -> dict[str, Any]:
        path = self.root / name / "manifest.json"
        return dict(json.loads(path.read_bytes())) if path.is_file() else {}

    def all_sets(self) -> list[str]:
        return sorted(
            path.parent.relative_to(self.root).as_posix() for path in self.root.rglob("manifest.json")
        )

    @invariant()
    def sets_verify(self) -> None:
        for name in dict.fromkeys(self.touched):
            if name and name not in self.broken and self.manifest(name):
                try:
                    failed = [
                        f"{check.name}: {check.detail}" for check in verify(self.root / name) if not check.ok
                    ]
                except DataError as error:
                    failed = [str(error)]
                assert failed == [], (name, self.refused)
        self.touched = []


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def test_a_project_stays_whole_whatever_is_done_to_it() -> None:
    run_state_machine_as_test(
        Project, settings=settings(max_examples=12, stateful_step_count=12, deadline=None, derandomize=True, suppress_health_check=QUIET)
    )  # fmt: skip


@pytest.mark.slow
def test_a_project_stays_whole_over_many_steps() -> None:
    examples = int(os.environ.get("PROJECT_EXAMPLES", "60"))
    run_state_machine_as_test(
        Project, settings=settings(max_examples=examples, stateful_step_count=30, deadline=None, suppress_health_check=QUIET)
    )  # fmt: skip
