"""Many tasks on this machine: worker processes started by forkserver, one thread each in kernels and tokenizers.

One worker, one task or very little work runs in this process where no workers run yet: no start-up cost, same bytes. A worker
that dies (out of memory, killed) is an error that names the task; what others finished stays.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import Any

from datamix.core.contracts import Receipt, Task
from datamix.core.errors import MachineError
from datamix.pipeline import preload
from datamix.pipeline.store import Store, carry

# pyarrow imports pandas with the first list it converts: a quarter second, paid once and not in every worker.
_SHARED = ["pandas"]
_SMALL_BYTES = 4 << 20  # a worker takes about a second to start; this much is done by then


class LocalEngine:
    """Runs tasks in up to ``num_workers`` processes; the pool starts with the first phase that needs it."""

    def __init__(self, num_workers: int) -> None:
        self.num_workers = max(1, num_workers)
        self._pool: ProcessPoolExecutor | None = None
        self._warm_for: str | None = None  # the module of tasks that workers are made ready for

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Receipt]]:
        """Yield ``(index, receipt)`` in the order tasks end; finished ones come first, at once."""
        pending: list[tuple[int, Task]] = []
        for index, task in enumerate(tasks):
            done = Store(task.home).find(task.key)
            if done is None:
                pending.append((index, task))
            else:
                yield index, replace(done, was_found=True)
        small = len(pending) <= 1 or sum(task.weight for _, task in pending) < _SMALL_BYTES
        waited_for = self._pool or any(task.call.__module__ == self._warm_for for _, task in pending)
        if self.num_workers == 1 or (small and not waited_for):
            for index, task in pending:
                yield index, carry(task)
        else:
            yield from self._in_pool(pending)

    def warm(self, call: Callable[[Any], Any], spec: Any) -> None:
        """Call ``call(spec)``, which loads what later tasks need, beside this process, once for all workers."""
        if self.num_workers > 1 and self._pool is None:
            preload.start(_SHARED, call, spec)
            self._warm_for = call.__module__

    def close(self) -> None:
        """Stop the workers; unfinished tasks are dropped. Running tasks end first, but not while an interruption is handled."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        if isinstance(sys.exc_info()[1], KeyboardInterrupt):
            for process in list((pool._processes or {}).values()):
                process.kill()
        pool.shutdown(wait=True, cancel_futures=True)

    def _in_pool(self, pending: list[tuple[int, Task]]) -> Iterator[tuple[int, Receipt]]:
        if self._pool is None:
            preload.start(
                [*sorted({t.call.__module__ for _, t in pending}), *_SHARED]
            )  # once for all workers
            context = multiprocessing.get_context("forkserver")
            self._pool = ProcessPoolExecutor(self.num_workers, mp_context=context, initializer=_start_worker)
        pool = self._pool
        futures: dict[Future[Receipt], tuple[int, Task]] = {}
        queue = iter(pending)
        try:
            for item in queue:
                futures[pool.submit(carry, item[1])] = item
                if len(futures) >= 2 * self.num_workers:
                    yield from _ended(futures)
            while futures:
                yield from _ended(futures)
        except BrokenProcessPool:
            self._pool = None
            labels = ", ".join(
                task.label for _, task in sorted(futures.values(), key=lambda item: item[0])[:3]
            )
            raise MachineError(
                f"A worker process died while working on {labels}: it was killed, most often for lack of memory. What was "
                "finished is kept: run the same command again, with --workers 1 if it happens again. In a script of your own, "
                'call datamix below `if __name__ == "__main__":`, as every program that starts processes must.'
            ) from None


def _ended(futures: dict[Future[Receipt], tuple[int, Task]]) -> Iterator[tuple[int, Receipt]]:
    done, _ = wait(futures, return_when=FIRST_COMPLETED)
    for future in sorted(done, key=lambda f: futures[f][0]):
        receipt = future.result()
        index, _ = futures.pop(future)
        yield index, receipt


def _start_worker() -> None:
    """Ctrl-C is for the parent to handle."""
    import signal

    preload.end_worker_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    one_thread()


def one_thread() -> None:
    """One thread a worker: the parallel unit is the task."""
    import gc

    import pyarrow as pa

    # parsing allocates many objects and no cycles: the cyclic GC took 10 % of the time
    gc.set_threshold(100_000)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
    pa.set_cpu_count(1)


def default_workers() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
