"""Builds by ``datamix worker`` processes: the same bytes as by one process, whoever dies or stops, and the same errors."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import small

from datamix.core.errors import DataError, MachineError, RecipeError
from datamix.jobs import worker as worker_job
from datamix.pipeline import engine_workers
from datamix.pipeline.building import hold_folder
from datamix.pipeline.leases import Lease
from datamix.pipeline.progress import Screen
from datamix.pipeline.work_folder import WorkFolder

SAMPLES = ("sft", "pretrain", "preference", "prompt")
Process = subprocess.Popen[str]


def start(*arguments: str | Path) -> Process:
    """A command in the background; its output can be read when it ends."""
    command = [sys.executable, "-m", "datamix", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@contextmanager
def killed_at_the_end() -> Iterator[list[Process]]:
    """Processes that do not outlive a test that fails."""
    processes: list[Process] = []
    try:
        yield processes
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                process.communicate()


def wait_until(condition: Callable[[], Any]) -> Any:
    """What a condition gives, as soon as it gives something."""
    for _ in range(60_000):
        if found := condition():
            return found
        time.sleep(0.002)
    raise AssertionError("nothing came for two minutes")


def worker_of(cache: Path, process: Process) -> str:
    """The lease of a worker process, or an empty text while it has none."""
    names = os.listdir(cache / "leases") if (cache / "leases").is_dir() else []
    return next((n for n in names if n.startswith("worker-") and n.split("-")[2] == str(process.pid)), "")


def caught_in_a_task(cache: Path, process: Process) -> bool:
    """Stop a worker while it works on a task: whether it was caught."""
    name = worker_of(cache, process)
    holds = [f for f in WorkFolder.all(cache) for key in f.claimed_keys() if f.begun_by(key)[-1:] == [name]]
    if not name or not holds:
        return False
    process.send_signal(signal.SIGSTOP)
    holds = [f for f in WorkFolder.all(cache) for key in f.claimed_keys() if f.begun_by(key)[-1:] == [name]]
    if not holds:
        process.send_signal(signal.SIGCONT)
    return bool(holds)


def built_in_disorder(recipe: Path, out: Path, cache: Path) -> None:
    """Build by three workers, of which one is killed and one stops for a minute; the driver dies too, and there are two of it."""
    with killed_at_the_end() as processes:
        driver = ("build", recipe, "-o", out, "--cache", cache, "--engine", "workers")
        processes.append(first := start(*driver))
        wait_until(lambda: any(f.open_keys() for f in WorkFolder.all(cache)))
        processes.append(doomed := start("worker", cache, "--index", "0/3", "--idle", "60"))
        wait_until(lambda: caught_in_a_task(cache, doomed))
        doomed.kill()
        processes.append(stopped := start("worker", cache, "--index", "1/3", "--idle", "60"))
        wait_until(lambda: caught_in_a_task(cache, stopped))
        lease = cache / "leases" / worker_of(cache, stopped)
        os.utime(lease, (time.time() - 120, time.time() - 120))  # as if a minute had passed

        second = small.datamix(*driver)
        assert second.returncode == 2
        assert f"Another build (process {first.pid}) is writing" in second.stderr
        first.kill()
        first.communicate()
        processes.append(again := start(*driver))
        processes.append(third := start("worker", cache, "--index", "2/3", "--idle", "60"))
        assert again.communicate(timeout=240)[0].count("Waiting for workers") == 1
        assert again.returncode == 0
        assert "is finished" in third.communicate(timeout=60)[0]
        assert third.returncode == 0

        before = small.fingerprint(out)
        stopped.send_signal(signal.SIGCONT)
        assert "is finished" in stopped.communicate(timeout=60)[0]
        assert stopped.returncode == 0
        assert small.fingerprint(out) == before


def test_workers_give_the_same_bytes_while_one_is_killed_one_stops_and_the_driver_starts_again(
    tmp_path: Path,
) -> None:
    recipe = small.recipe(tmp_path)
    alone = small.datamix(
        "build", recipe, "-o", tmp_path / "alone", "--cache", tmp_path / "c", "--workers", 1
    )
    assert alone.returncode == 0
    built_in_disorder(recipe, tmp_path / "out", tmp_path / "cache")
    assert small.fingerprint(tmp_path / "out") == small.fingerprint(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLES)
def test_every_sample_is_the_same_bytes_by_workers_that_die(name: str, tmp_path: Path) -> None:
    recipe = small.ROOT / "samples" / f"{name}.yaml"
    alone = small.datamix(
        "build", recipe, "-o", tmp_path / "alone", "--cache", tmp_path / "c", "--workers", 1
    )
    assert alone.returncode == 0
    built_in_disorder(recipe, tmp_path / "out", tmp_path / "cache")
    print(f"{name}: {small.tree_digest(tmp_path / 'alone')} one process")
    print(f"{name}: {small.tree_digest(tmp_path / 'out')} three workers, in disorder")
    assert small.fingerprint(tmp_path / "out") == small.fingerprint(tmp_path / "alone")


def test_what_a_worker_finds_wrong_is_the_error_of_the_build(tmp_path: Path) -> None:
    recipe = small.recipe(tmp_path)
    twice = (tmp_path / "general.jsonl").read_text(encoding="utf-8").splitlines()[0] + "\n"
    (tmp_path / "general.jsonl").write_text(twice * 50, encoding="utf-8")
    alone = small.datamix(
        "build", recipe, "-o", tmp_path / "a", "--cache", tmp_path / "c", "--workers", 1, "--quiet"
    )
    with killed_at_the_end() as processes:
        build = ("build", recipe, "-o", tmp_path / "b", "--cache", tmp_path / "d", "--engine", "workers")
        processes.append(driver := start(*build, "--quiet"))
        processes.append(start("worker", tmp_path / "d", "--idle", "120"))
        said = driver.communicate(timeout=120)[0]
        assert (driver.returncode, alone.returncode) == (3, 3)
        assert said == alone.stderr


@pytest.fixture(autouse=True)
def threads_of_this_process_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_job, "one_thread", lambda: None)


@contextmanager
def an_open_task(tmp_path: Path, **changes: Any) -> Iterator[tuple[Path, WorkFolder]]:
    """A cache with one build that beats, and one task of it: a scan of a file of two records."""
    cache = tmp_path / "cache"
    (cache / "store").mkdir(parents=True)
    file = small.write_jsonl(tmp_path / "a.jsonl", small.alpaca(small.GENERAL, 2))
    stat = file.stat()
    state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    spec = {"paths": [str(file)], "states": [state], "container": None, "format": None, "encoding": None,
            "columns": []}  # fmt: skip
    task = {"format": 1, "call": "scan", "label": "scan a", "key": "0" * 64, "home": str(cache / "store"),
            "weight": 1, "spec": spec}  # fmt: skip
    lease = Lease(cache, "build")
    folder = WorkFolder(cache, lease.id)
    folder.create(tmp_path / "out")
    folder.open("0" * 64, json.dumps(task | changes))
    try:
        yield cache, folder
    finally:
        lease.close()


def test_a_worker_takes_the_task_of_a_dead_one_and_of_one_that_gave_it_back(tmp_path: Path) -> None:
    for number, line in enumerate(("worker-00000000-1-1-aaaa", "- No space left", "")):
        with an_open_task(tmp_path / str(number)) as (cache, folder):
            claim = folder.root / "claims" / ("0" * 64)
            claim.write_text(f"{line}\n" if line else "")
            if not line:  # killed between making its claim and writing its name
                os.utime(claim, (time.time() - 61, time.time() - 61))
            assert worker_job.work(cache, (0, 1), 0.05) == 1
            assert folder.open_keys() == []
            assert folder.claimed_keys() == set()


def test_a_worker_leaves_the_task_of_one_that_beats(tmp_path: Path) -> None:
    with an_open_task(tmp_path) as (cache, folder):
        other = Lease(cache, "worker")
        assert folder.claim("0" * 64, other.id)
        assert worker_job.work(cache, None, 0.05) == 0
        assert folder.begun_by("0" * 64) == [other.id]
        other.close()


def test_a_worker_of_another_version_refuses_with_one_sentence(tmp_path: Path) -> None:
    with an_open_task(tmp_path) as (cache, folder):
        about = folder.description()
        about["environment"]["pyarrow"] = "1.0"
        (folder.root / "build.json").write_text(json.dumps(about))
        with pytest.raises(MachineError, match=r"pyarrow is .* here and 1\.0 where the build was started"):
            worker_job.work(cache, None, 1)
        assert len(folder.open_keys()) == 1


def test_a_worker_that_sees_the_cache_under_another_path_says_so(tmp_path: Path) -> None:
    with an_open_task(tmp_path) as (cache, _):
        shutil.copytree(cache, tmp_path / "elsewhere")
        with pytest.raises(MachineError, match="the same paths on every machine"):
            worker_job.work(tmp_path / "elsewhere", None, 1)


def test_a_task_that_no_build_wrote_stops_the_build_and_not_the_worker(tmp_path: Path) -> None:
    with an_open_task(tmp_path, call="os.system") as (cache, folder):
        assert worker_job.work(cache, None, 0.05) == 1
        error = folder.failure("0" * 64)
        assert isinstance(error, DataError)
        assert "os.system" in str(error)


def test_a_worker_whose_machine_fails_gives_its_task_back_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(task: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(worker_job, "carry", full)
    with an_open_task(tmp_path) as (cache, folder):
        with pytest.raises(MachineError, match="No space left"):
            worker_job.work(cache, None, 1)
        assert folder.begun_by("0" * 64)[-1].startswith("- The machine refused: No space left")
        assert folder.open_keys() == ["0" * 64]


def test_a_task_that_ends_every_worker_is_an_error_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_workers, "_NOTE_SECONDS", 0.0)
    small.recipe(tmp_path)
    lease = Lease(tmp_path, "build")
    engine = engine_workers.WorkersEngine(tmp_path, tmp_path / "out", lease, Screen(quiet=True))
    folder = WorkFolder(tmp_path, lease.id)
    from datamix.pipeline import scan

    request = scan.SourceRequest("general", ("general.jsonl",), str(tmp_path))
    (task,) = scan.tasks(request, tmp_path / "store", lambda path, places: False)
    dead = "".join(f"worker-00000000-1-1-{n}\n" for n in range(5))
    (folder.root / "claims" / task.key).write_text(f"{dead}- Out of memory.\n")
    with pytest.raises(
        MachineError, match=r"scan general was begun 5 times.*The last one said: Out of memory\."
    ):
        list(engine.run([task]))
    lease.close()


def test_an_index_is_a_place_among_workers_or_comes_from_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_job.place_of("2/8") == (2, 8)
    assert worker_job.place_of(None) is None
    for name, value in (("ID", "12"), ("MIN", "10"), ("MAX", "13")):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    assert worker_job.place_of(None) == (2, 4)
    assert worker_job.place_of("0/1") == (0, 1)
    for wrong in ("8/8", "1", "a/b", "-1/4", "1/0"):
        with pytest.raises(RecipeError, match="I from 0 to N - 1"):
            worker_job.place_of(wrong)


def test_options_of_one_engine_are_refused_for_another(tmp_path: Path) -> None:
    wrong = small.datamix("build", small.recipe(tmp_path), "--engine", "workers", "--workers", 2)
    assert wrong.returncode == 2
    assert "--workers is for this machine" in wrong.stderr
    for options in (("--engine", "ray"), ("--address", "local"), ("--engine", "workers", "--address", "a:1")):
        wrong = small.datamix("build", tmp_path / "recipe.yaml", *options)
        assert wrong.returncode == 2
        assert "go together" in wrong.stderr


def test_a_lease_keeps_a_second_build_out_where_a_disk_has_no_locks_and_falls_when_its_heart_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    leases = tmp_path / "out" / ".building" / "leases"
    with hold_folder(tmp_path / "out", shared=True) as held:
        assert held is not None
        with pytest.raises(RecipeError, match=f"lease {held.id}, heartbeat 0 s ago"):
            hold_folder(tmp_path / "out", shared=True).__enter__()
        assert not held.is_lost
    other = leases / "build-00000000-1-1-aaaa"  # of another machine
    other.touch()
    with pytest.raises(RecipeError, match=f"lease {other.name}"):
        hold_folder(tmp_path / "out", shared=True).__enter__()
    os.utime(other, (time.time() - 61, time.time() - 61))
    with hold_folder(tmp_path / "out", shared=True) as held:
        assert held is not None
        assert [path.name for path in leases.iterdir()] == [held.id]
    with pytest.raises(MachineError, match="no file locks"):
        hold_folder(tmp_path / "out").__enter__()


def test_a_local_build_respects_the_lease_of_a_build_by_workers(tmp_path: Path) -> None:
    leases = tmp_path / "out" / ".building" / "leases"
    with hold_folder(tmp_path / "out", shared=True):
        pass
    (leases / "build-00000000-1-1-aaaa").touch()
    with pytest.raises(RecipeError, match="lease build-00000000-1-1-aaaa"):
        hold_folder(tmp_path / "out").__enter__()


def test_a_build_that_lost_its_lease_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datamix.jobs.build import build
    from datamix.pipeline import publish
    from datamix.pipeline.steps import Options
    from datamix.recipe import Recipe

    out, link = tmp_path / "out", publish.write_shards.link

    def lose(*arguments: Any) -> Any:
        held = next((out / ".building" / "leases").iterdir())
        held.unlink()  # as another build does that takes it for dead
        wait_until(held.exists)  # its next heartbeat
        return link(*arguments)

    monkeypatch.setattr("datamix.pipeline.leases._BEAT_SECONDS", 0.01)
    monkeypatch.setattr(publish.write_shards, "link", lose)
    monkeypatch.setattr("datamix.jobs.build.open_context", _local_context(monkeypatch))
    with pytest.raises(MachineError, match="another one has taken its place"):
        build(Recipe.read(small.recipe(tmp_path)), Options(out, tmp_path / "cache", 1, engine="workers"))
    assert not (out / "manifest.json").exists()


def _local_context(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """``open_context`` whose tasks are done in this process."""
    from dataclasses import replace

    from datamix.pipeline.steps import open_context

    return lambda options, screen: open_context(replace(options, engine="local"), screen)
