"""``datamix worker``: carry out tasks of the builds that share a cache, until every one of them is done.

One worker is one process and one task at a time: start as many as there are processors. Workers need no list of each other. A
worker that dies costs the task that it was working on, which another takes as soon as the heartbeat of the dead one is a minute
old (at once, if it was a process of the same machine). Cost while there is nothing to do: a look at one folder every quarter
second.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datamix.core.contracts import Task
from datamix.core.errors import DatamixError, InternalError, MachineError, RecipeError
from datamix.core.machine import failures_at, machine_failure
from datamix.pipeline.engine import one_thread
from datamix.pipeline.leases import Lease
from datamix.pipeline.store import carry, check_cache
from datamix.pipeline.task_files import TaskReader, check_environment
from datamix.pipeline.work_folder import WorkFolder

_MIN_WAIT_SECONDS, _MAX_WAIT_SECONDS = 0.02, 0.25
_CLAIMS_SECONDS = 2.0  # between two looks at whether workers that began tasks are alive
_NEW_BUILD_SECONDS = (
    60.0  # a worker that finds only finished builds may have been started just before the next
)


def work(
    cache: Path,
    place: tuple[int, int] | None = None,
    idle_seconds: float = 600.0,
    say: Callable[[str], None] = lambda text: None,
) -> int:
    """Carry out tasks until every build in ``cache`` is finished or nothing came for ``idle_seconds``; return how many.

    ``place`` is (I, N): worker I of N begins to look at that part of the tasks. Raises MachineError where this machine fails, or
    has other versions than a build.
    """
    check_cache(cache)
    with failures_at(cache, "opening the cache", "name another place"):
        lease = Lease(cache, "worker")
    one_thread()
    worker = _Worker(cache, place, lease)
    try:
        return worker.work(idle_seconds, say)
    finally:
        lease.close()


class _Worker:
    def __init__(self, cache: Path, place: tuple[int, int] | None, lease: Lease) -> None:
        self._cache, self._lease = cache, lease
        # without a place: anywhere, so that workers seldom reach for the same task
        seed = int.from_bytes(hashlib.sha256(lease.id.encode()).digest()[:4], "big") / 2**32
        self._start = place[0] / place[1] if place else seed
        self._readers: dict[str, TaskReader] = {}
        self._looked = 0.0

    def work(self, idle_seconds: float, say: Callable[[str], None]) -> int:
        started = quiet_since = time.monotonic()
        num_done, pause = 0, _MIN_WAIT_SECONDS
        while True:
            builds = [(folder, folder.description()) for folder in WorkFolder.all(self._cache)]
            live = [b for b in builds if b[1] and not b[1]["finished"] and self._lease.is_beating(b[0].build)]
            if any(self._one_task(*build, say) for build in live):
                num_done, pause, quiet_since = num_done + 1, _MIN_WAIT_SECONDS, time.monotonic()
                continue
            now = time.monotonic()
            finished = bool(builds) and all(about.get("finished") for _, about in builds)
            if finished and (num_done or now - started >= min(idle_seconds, _NEW_BUILD_SECONDS)):
                say(f"Every build in {self._cache} is finished; {num_done:,} tasks were done here.")
                return num_done
            if now - quiet_since >= idle_seconds:
                say(f"Nothing to do for {idle_seconds:.0f} seconds; {num_done:,} tasks were done here.")
                return num_done
            pause = min(_MAX_WAIT_SECONDS, 1.5 * pause)
            time.sleep(pause)

    def _one_task(self, folder: WorkFolder, about: dict[str, Any], say: Callable[[str], None]) -> bool:
        """Take one task of a build and carry it out; False where none is free."""
        if folder.build not in self._readers:
            place = f"Worker on {socket.gethostname()}"
            if not os.path.isdir(about["cache"]) or not os.path.samefile(about["cache"], self._cache):
                raise MachineError(
                    f"{place}: the build calls its cache {about['cache']}, which is not {self._cache} here. Mount cache, inputs and "
                    "OUT under the same paths on every machine."
                )
            check_environment(about["environment"], place)
            shared, cache = folder.root / "shared", Path(about["cache"])
            self._readers[folder.build] = TaskReader(shared, cache, Path(about["out"]))
        key = self._take(folder)
        if key is None:
            return False
        try:
            task = folder.read(key, self._readers[folder.build])
            if task is not None and task.home.is_dir():  # else it was done, or its build has ended
                self._carry(folder, task, say)
            folder.close(key)
        except MachineError as error:  # another machine may be able to
            folder.note(key, f"- {error}")
            raise
        except DatamixError as error:
            folder.fail(key, error)
        return True

    def _take(self, folder: WorkFolder) -> str | None:
        """A task that nobody works on."""
        keys, claimed = folder.open_keys(), folder.claimed_keys()
        start = int(self._start * len(keys))
        for key in keys[start:] + keys[:start]:
            if key not in claimed and folder.claim(key, self._lease.id):
                return key
        if time.monotonic() - self._looked >= _CLAIMS_SECONDS:
            self._looked = time.monotonic()
            for key in keys:
                if folder.is_free(key, self._lease):
                    folder.note(key, self._lease.id)
                    return key
        return None

    def _carry(self, folder: WorkFolder, task: Task, say: Callable[[str], None]) -> None:
        """Carry a task out. Raises DatamixError, whatever went wrong."""
        started = time.monotonic()
        try:
            carry(task)
        except DatamixError:
            if folder.description():  # else the build has ended, and what it needed is gone
                raise
        except Exception as error:
            if not folder.description():
                return
            unknown = (
                f"{task.label}: {type(error).__name__}: {error}. This is a bug in datamix: please report it."
            )
            raise machine_failure(error) or InternalError(unknown) from error
        say(f"{task.label}: {time.monotonic() - started:.1f} s")


def place_of(index: str | None) -> tuple[int, int] | None:
    """``2/8`` -> (2, 8); without it the place in a Slurm array, None outside of one. Raises RecipeError."""
    if index is not None:
        first, slash, count = index.partition("/")
        if not slash or not (first.isdigit() and count.isdigit()) or int(first) >= int(count):
            raise RecipeError(f"--index {index}: should be I/N with I from 0 to N - 1, such as 0/8.")
        return int(first), int(count)
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX")
    values = [os.environ.get(name, "") for name in names]
    if not all(value.isdigit() for value in values):
        return None
    task, least, most = map(int, values)
    return task - least, max(task, most) - least + 1
