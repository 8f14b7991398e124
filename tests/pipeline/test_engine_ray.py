"""The loop that supervises tasks on Ray, against a Ray that loses, delays and doubles them. The real one: tests/test_ray.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small

from datamix.core.contracts import Task
from datamix.core.errors import DataError, MachineError, RecipeError
from datamix.pipeline import engine_ray, scan
from datamix.pipeline.engine_ray import RayEngine, carry_text
from datamix.pipeline.leases import Lease
from datamix.pipeline.progress import Screen

Behaviour = Callable[[str, int], str]  # (label, how often it was submitted) -> done | lost | silent | late


class FakeRay:
    """As much of Ray as the engine uses; time passes only where the engine waits."""

    exceptions = SimpleNamespace(RayTaskError=type("RayTaskError", (Exception,), {}))

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour, self.now, self.submitted = behaviour, 0.0, list[tuple[str, dict[str, Any]]]()
        self.answers: dict[object, Any] = {}
        self.cancelled: list[object] = []
        self.most_at_once = 0

    def remote(self, function: Any) -> Any:
        return SimpleNamespace(
            options=lambda **options: SimpleNamespace(remote=self._start(function, options))
        )

    def _start(self, function: Any, options: dict[str, Any]) -> Callable[..., object]:
        def start(text: str, *more: str) -> object:
            label = json.loads(text)["label"]
            self.submitted.append((label, options))
            ref = object()
            how = self.behaviour(label, sum(1 for name, _ in self.submitted if name == label))
            if how in ("done", "late"):
                self.answers[ref] = function(text, *more)
            if how in ("silent", "late"):
                self.answers[ref] = None  # it is done, or not, and Ray never says so
            elif how == "lost":
                self.answers[ref] = ConnectionError("the node died")
            return ref

        return start

    def wait(self, refs: list[object], num_returns: int, timeout: float) -> tuple[list[object], list[object]]:
        self.most_at_once = max(self.most_at_once, len(refs))
        ready = [ref for ref in refs if self.answers[ref] is not None][:num_returns]
        self.now += 0.001 if ready else timeout
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref: object, timeout: float) -> Any:
        if isinstance(answer := self.answers[ref], Exception):
            raise answer
        return answer

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"CPU": 2.0, "memory": float(8 << 30)}}]

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def cancel(self, ref: object, force: bool) -> None:
        self.cancelled.append(ref)

    def shutdown(self) -> None:
        self.answers.clear()


@pytest.fixture
def start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Behaviour], tuple[RayEngine, FakeRay]]]:
    engine_ray._ready.cache_clear()
    lease = Lease(tmp_path, "build")

    def start(behaviour: Behaviour) -> tuple[RayEngine, FakeRay]:
        fake = FakeRay(behaviour)
        monkeypatch.setattr(engine_ray, "_import_ray", lambda address: fake)
        monkeypatch.setattr(engine_ray, "one_thread", lambda: None)
        monkeypatch.setattr(engine_ray, "time", SimpleNamespace(monotonic=lambda: fake.now))
        for name in ("_connect", "_check_nodes"):
            monkeypatch.setattr(RayEngine, name, lambda *arguments: None)
        (tmp_path / "store").mkdir(exist_ok=True)
        return RayEngine("local", tmp_path, tmp_path / "out", lease, Screen(quiet=True), 2), fake

    yield start
    lease.close()


def scans(folder: Path, count: int) -> list[Task]:
    """Tasks that read a file of two records each."""
    tasks: list[Task] = []
    for n in range(count):
        small.write_jsonl(folder / f"{n}.jsonl", small.alpaca([f"question {n}"], 2))
        request = scan.SourceRequest(f"s{n}", (f"{n}.jsonl",), str(folder))
        tasks += scan.tasks(request, folder / "store", lambda path, places: False)
    return tasks


def test_every_task_is_done_once_and_few_are_on_their_way(tmp_path: Path, start: Any) -> None:
    engine, fake = start(lambda label, times: "done")
    tasks = scans(tmp_path, 12)
    done = dict(engine.run([tasks[0], *tasks]))
    assert [done[i].key for i in range(13)] == [t.key for t in [tasks[0], *tasks]]
    assert len(fake.submitted) == 12
    assert fake.most_at_once <= 4
    assert [done[i].files for i in range(1, 13)] == [
        receipt.files for _, receipt in sorted(engine.run(tasks))
    ]
    assert len(fake.submitted) == 12  # receipts are found


def test_a_task_whose_node_dies_is_submitted_again(tmp_path: Path, start: Any) -> None:
    engine, fake = start(lambda label, times: "lost" if label == "scan s2" and times < 3 else "done")
    assert len(dict(engine.run(scans(tmp_path, 4)))) == 4
    assert [label for label, _ in fake.submitted].count("scan s2") == 3


def test_a_task_that_dies_five_times_is_an_error_that_names_it(tmp_path: Path, start: Any) -> None:
    engine, fake = start(lambda label, times: "lost" if label == "scan s1" else "done")
    with pytest.raises(MachineError, match=r"scan s1 failed 5 times: ConnectionError: the node died"):
        dict(engine.run(scans(tmp_path, 3)))
    assert [label for label, _ in fake.submitted].count("scan s1") == 5


def test_a_task_on_a_silent_node_is_submitted_again_after_a_stall(tmp_path: Path, start: Any) -> None:
    engine, fake = start(lambda label, times: "silent" if label == "scan s1" and times < 4 else "done")
    assert len(dict(engine.run(scans(tmp_path, 3)))) == 3
    assert 20 < fake.now < 400  # each time it waits longer


def test_a_receipt_counts_where_ray_says_nothing(tmp_path: Path, start: Any) -> None:
    engine, fake = start(lambda label, times: "late")
    assert len(dict(engine.run(scans(tmp_path, 9)))) == 9
    assert len(fake.submitted) == 9
    assert fake.now < 20


def test_the_last_task_that_runs_long_gets_a_second_copy(tmp_path: Path, start: Any) -> None:
    engine, fake = start(lambda label, times: "silent" if label == "scan s5" and times == 1 else "done")
    assert len(dict(engine.run(scans(tmp_path, 6)))) == 6
    assert [label for label, _ in fake.submitted].count("scan s5") == 2
    assert 10 < fake.now < 20  # sooner than after a stall
    first, second = (options["memory"] for label, options in fake.submitted if label == "scan s5")
    assert first != second  # else it waits in the line behind what the silent node never answers


def test_an_error_of_the_data_ends_the_build_and_what_runs_is_cancelled(tmp_path: Path, start: Any) -> None:
    tasks = scans(tmp_path, 6)
    engine, fake = start(lambda label, times: "done" if label == "scan s3" else "silent")
    (tmp_path / "3.jsonl").unlink()
    with pytest.raises(DataError, match=r"3\.jsonl"), closing(engine):
        dict(engine.run(tasks))
    assert len(fake.cancelled) == 3
    assert not engine._folder.root.exists()


def test_what_sees_every_record_asks_for_memory(tmp_path: Path, start: Any) -> None:
    engine, fake = start(lambda label, times: "done")
    dict(engine.run(scans(tmp_path, 1)))
    assert fake.submitted[0][1]["memory"] == 1 << 30
    assert fake.submitted[0][1]["max_retries"] == 0


def test_what_a_process_of_the_cluster_meets_comes_back_as_text(tmp_path: Path) -> None:
    engine_ray._ready.cache_clear()
    where = json.dumps([str(tmp_path), str(tmp_path / "out"), str(tmp_path / "shared")])
    answer = json.loads(carry_text("{}", json.dumps({"datamix": "0.0.1"}), where))
    assert answer["kind"] == "MachineError"
    assert "datamix is" in answer["message"]


def test_ray_that_is_not_installed_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(RecipeError, match=r'pip install "\.\[ray\]"'):
        engine_ray._import_ray("local")


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "ray://head:x"])
def test_an_address_that_is_none_is_a_mistake_of_the_command_line(address: str) -> None:
    engine = object.__new__(RayEngine)
    with pytest.raises(RecipeError, match="host:port"):
        engine._connect(address, 1)
