"""Commands that share a cache: nothing is pruned or swept under a running build, and what the dead left is removed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from small import datamix as command
from small import fingerprint, recipe

import datamix
from datamix.core.contracts import Task
from datamix.core.errors import MachineError
from datamix.pipeline import building, leases
from datamix.pipeline.built_sets import prune
from datamix.pipeline.leases import Lease, partial_name
from datamix.pipeline.store import Store, carry

DEAD = (1 << 22) + 1  # above the largest pid


def write(spec: str, folder: Path) -> dict[str, Any]:
    (folder / "data.bin").write_text(spec)
    return {}


def results(cache: Path, number: int) -> list[str]:
    """Keys of so many results."""
    tasks = [Task("a task", f"{n:02x}" + "0" * 62, write, "content", cache / "store") for n in range(number)]
    return [carry(task).key for task in tasks]


def test_pruning_leaves_what_a_running_build_has_named_and_takes_it_afterwards(tmp_path: Path) -> None:
    keys = results(tmp_path, 3)
    lease = Lease(tmp_path, "build")
    lease.name(keys[:2])
    said = prune(tmp_path)
    assert said.startswith("Removed 1 results, ")
    assert said.endswith("kept 2 that sets need or 1 running build uses.")
    assert Store(tmp_path / "store").finished() == keys[:2]
    lease.close()
    assert prune(tmp_path).startswith("Removed 2 results, ")
    assert list((tmp_path / "leases").iterdir()) == []


def test_a_build_waits_with_new_names_until_a_prune_has_ended(tmp_path: Path) -> None:
    build, pruning = Lease(tmp_path, "build"), Lease(tmp_path, "prune")
    named = threading.Event()
    thread = threading.Thread(target=lambda: (build.name(["key"]), named.set()))
    thread.start()
    while pruning.named_by_builds() != (1, {"key"}):
        time.sleep(0.001)
    assert not named.is_set()
    pruning.close()
    thread.join(timeout=30)
    assert named.is_set()
    build.close()


def test_the_lease_of_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    keys = results(tmp_path, 1)
    folder = tmp_path / "leases"
    folder.mkdir()
    ours = leases.machine_tag()
    (folder / f"build-{ours}-{DEAD}-1-aaaa").write_text(keys[0])
    (folder / f"build-{ours}-{os.getpid()}-1-aaaa").write_text(keys[0])  # its pid is another process's by now
    stale = folder / "build-00000000-1-1-aaaa"
    stale.write_text(keys[0])
    os.utime(stale, (time.time() - 61, time.time() - 61))
    (folder / "notes.txt").touch()
    os.utime(folder / "notes.txt", (0, 0))
    assert prune(tmp_path).startswith("Removed 1 results, ")
    assert list(folder.iterdir()) == []


def test_the_lease_of_another_machine_holds_while_its_heart_beats(tmp_path: Path) -> None:
    keys = results(tmp_path, 1)
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases/build-00000000-1-1-aaaa").write_text(f"{keys[0]}\n")
    assert prune(tmp_path).startswith("Removed 0 results, ")


def test_a_lease_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_BEAT_SECONDS", 0.001)
    lease = Lease(tmp_path, "build")
    (path,) = (tmp_path / "leases").iterdir()
    os.utime(path, (0, 0))
    while path.stat().st_mtime < 1000:
        time.sleep(0.001)
    lease.close()


def test_the_next_build_sweeps_what_the_dead_left_half_written_and_nothing_of_the_living(
    tmp_path: Path,
) -> None:
    path, partial = recipe(tmp_path), tmp_path / ".datamix/store/partial"
    ours = leases.machine_tag()
    for name in (f"key-{ours}-{DEAD}-1-aaaa", "0123456789abcdef-77-0a1b2c3d", "key-00000000-1-1-aaaa"):
        (partial / name).mkdir(parents=True)
    living = partial / partial_name("key")
    living.mkdir()
    (tmp_path / ".datamix/leases").mkdir()
    (tmp_path / ".datamix/leases/build-11111111-1-1-aaaa").touch()
    elsewhere = partial / "key-11111111-1-1-aaaa"
    elsewhere.mkdir()
    datamix.build(path, tmp_path / "set", workers=1)
    assert set(partial.iterdir()) == {living, elsewhere}


def test_four_builds_of_one_recipe_share_a_cache_while_it_is_pruned(tmp_path: Path) -> None:
    path, cache = recipe(tmp_path), tmp_path / "cache"
    builds = [
        subprocess.Popen(
            [sys.executable, "-m", "datamix", "build", path, "-o", tmp_path / f"set{n}", "--cache", cache],
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(4)
    ]
    num_pruned = 0
    while any(build.poll() is None for build in builds):
        if (cache / "store").exists():
            done = command("cache", "--cache", cache, "--prune")
            assert done.returncode == 0, done.stderr
            num_pruned += 1
    errors = [build.communicate()[1] for build in builds]
    assert [build.returncode for build in builds] == [0] * 4, errors
    assert num_pruned > 1
    assert all(fingerprint(tmp_path / f"set{n}") == fingerprint(tmp_path / "set0") for n in range(1, 4))
    assert datamix.build(path, tmp_path / "set0", cache=cache)


def failed(out: Path) -> list[str]:
    return [check.detail for check in datamix.verify(out) if not check.ok]


def test_a_renamed_and_a_second_virtual_set_of_one_key_keep_their_rows_when_the_cache_is_pruned(
    tmp_path: Path,
) -> None:
    path = recipe(tmp_path, write=[])
    for name in ("first", "second"):
        datamix.build(path, tmp_path / name, workers=1)
    datamix.build(path, tmp_path / "far" / "third", cache=tmp_path / ".datamix", workers=1)
    rows = len(datamix.open(tmp_path / "first"))
    shutil.rmtree(tmp_path / "second")
    (tmp_path / "far" / "third").rename(tmp_path / "far" / "renamed")
    (tmp_path / "first").rename(tmp_path / "renamed")
    prune(tmp_path / ".datamix")
    assert len(datamix.open(tmp_path / "renamed")) == rows
    shutil.rmtree(tmp_path / "renamed")
    prune(tmp_path / ".datamix")
    moved = tmp_path / "elsewhere" / "deep" / "set"
    moved.parent.mkdir(parents=True)
    (tmp_path / "far" / "renamed").rename(moved)
    assert (
        len(datamix.open(moved, cache=tmp_path / ".datamix")) == rows
    )  # from now on the cache knows the place
    prune(tmp_path / ".datamix")
    assert len(datamix.open(moved, cache=tmp_path / ".datamix")) == rows
    shutil.rmtree(moved)
    prune(tmp_path / ".datamix")
    assert Store(tmp_path / ".datamix/store").finished() == []
    assert list((tmp_path / ".datamix/sets").iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said_to_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(handle: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(MachineError, match=r"has no file locks .*Lustre: -o flock"),
        building.hold_folder(tmp_path / "set"),
    ):
        pass


def test_a_process_that_ended_and_is_not_asked_for_its_exit_code_holds_nothing(tmp_path: Path) -> None:
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    assert leases.process_start(child.pid)
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and still in the table of processes
    assert leases.process_start(child.pid) == ""
    child.wait()
