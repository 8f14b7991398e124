"""Many tasks by ``datamix worker`` processes that share a cache, on any machine: a Slurm array, Kubernetes jobs, ssh loops.

The build writes task files and waits for their receipts; whoever has the cache mounted takes them. Nobody knows how many workers
there are. Cost: a look at one folder every quarter second, and two small files a task.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamix.core.contracts import Receipt, Task
from datamix.core.errors import MachineError
from datamix.pipeline.leases import Lease
from datamix.pipeline.progress import Screen
from datamix.pipeline.store import Store
from datamix.pipeline.work_folder import WorkFolder, remove_ended

_MAX_OPEN = 4096  # task files at a time
_MAX_BEGUN = 5  # times that a task may end no worker's work
_MIN_WAIT_SECONDS, _MAX_WAIT_SECONDS = 0.02, 0.25
_NOTE_SECONDS = 30.0
_LOST_SECONDS = 30.0  # a task file that is gone without a receipt is written again


class WorkersEngine:
    """Writes task files into the cache and waits until workers have done them."""

    def __init__(self, cache: Path, out: Path, lease: Lease, screen: Screen) -> None:
        self._out, self._lease, self._screen, self._cache = out, lease, screen, cache
        remove_ended(cache, lease)
        self._folder = WorkFolder(cache, lease.id)
        self._writer = self._folder.create(out)
        self._noted = time.monotonic()
        screen.say(f"Waiting for workers: run `datamix worker {cache}` wherever this cache is mounted.")

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Receipt]]:
        """Yield ``(index, receipt)`` in the order tasks end; finished ones come first, at once."""
        queue: deque[tuple[int, Task]] = deque()
        for index, task in enumerate(tasks):
            done = Store(task.home).find(task.key)
            if done is None:
                queue.append((index, task))
            else:
                yield index, replace(done, was_found=True)
        waiting: dict[str, list[tuple[int, Task]]] = {}  # equal tasks are done once
        gone: dict[str, float] = {}
        pause = _MIN_WAIT_SECONDS
        while queue or waiting:
            while queue and len(waiting) < _MAX_OPEN:
                index, task = queue.popleft()
                if task.key not in waiting:
                    self._open(task)
                waiting.setdefault(task.key, []).append((index, task))
            ended = list(self._ended(waiting, gone))
            for key, receipt in ended:
                for index, _ in waiting.pop(key):
                    yield index, receipt
            pause = _MIN_WAIT_SECONDS if ended else min(_MAX_WAIT_SECONDS, 1.5 * pause)
            if not ended:
                self._come_back(waiting)
                self._say_who_works(waiting)
                time.sleep(pause)

    def warm(self, call: Callable[[Any], Any], spec: Any) -> None:
        """Nothing: each worker loads what its tasks need."""

    def close(self) -> None:
        """Withdraw the tasks; where the build ended well, say so to the workers."""
        if sys.exc_info()[0] is None:
            self._folder.finish(self._out)
        else:
            self._folder.remove()

    def _ended(
        self, waiting: dict[str, list[tuple[int, Task]]], gone: dict[str, float]
    ) -> Iterator[tuple[str, Receipt]]:
        """Tasks whose files are gone, with their receipts. Raises what a worker met."""
        open_keys = set(self._folder.open_keys())
        for key in waiting.keys() - open_keys:
            if (error := self._folder.failure(key)) is not None:
                raise error
            task = waiting[key][0][1]
            receipt = Store(task.home).find(key)
            if receipt is not None:
                gone.pop(key, None)
                yield key, receipt
            elif time.monotonic() - gone.setdefault(key, time.monotonic()) > _LOST_SECONDS:
                del gone[key]  # a disk that shows files late would have shown it by now
                self._open(task)

    def _open(self, task: Task) -> None:
        with suppress(FileNotFoundError):  # ``_come_back`` writes it again
            self._folder.open(task.key, self._writer.text(task))

    def _come_back(self, waiting: dict[str, list[tuple[int, Task]]]) -> None:
        """After a minute's stop others may have removed the folder of this build: write it again."""
        if not self._folder.description():
            self._writer = self._folder.create(self._out)
            for tasks in waiting.values():
                self._open(tasks[0][1])

    def _say_who_works(self, waiting: dict[str, list[tuple[int, Task]]]) -> None:
        """Each half minute: whether anybody works, and whether a task kills those who try."""
        if time.monotonic() - self._noted < _NOTE_SECONDS:
            return
        self._noted = time.monotonic()
        for key in self._folder.claimed_keys() & waiting.keys():
            lines = self._folder.begun_by(key)
            begun = [line for line in lines if not line.startswith("- ")]
            if len(begun) >= _MAX_BEGUN and not self._lease.is_beating(begun[-1]):
                said = next(
                    (f" The last one said: {line[2:]}" for line in lines[::-1] if line[:2] == "- "), ""
                )
                raise MachineError(
                    f"{waiting[key][0][1].label} was begun {len(begun)} times, and each worker ended with it: killed, most often "
                    f"for lack of memory.{said} What was finished is kept: give workers more memory, and run the same command again."
                )
        if not any(name.startswith("worker-") for name in self._lease.beating()):
            self._screen.say(
                f"No worker is running for {len(waiting):,} tasks: run `datamix worker {self._cache}` wherever this cache is mounted."
            )
