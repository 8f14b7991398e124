"""Many tasks on a Ray cluster: Ray core tasks only, and only small JSON texts pass through it; data are on shared storage.

Ray decides where a task runs; whether it is done is decided by its receipt. So the loop never blocks on Ray: it waits for two
seconds at most, looks for receipts, and submits again what a dead or silent node holds. What runs long when nothing else is left
is begun a second time: whichever copy ends first counts. Measured: a plain ``ray.get`` waits for ever for a node whose network is cut.
Cost: a submission, an answer and a look at a receipt a task; not measured.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import statistics
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from datamix.core.contracts import Receipt, Task
from datamix.core.errors import DatamixError, InternalError, MachineError, RecipeError
from datamix.core.machine import machine_failure
from datamix.pipeline.engine import one_thread
from datamix.pipeline.leases import Lease
from datamix.pipeline.pack_sources import PackSpec
from datamix.pipeline.progress import Screen
from datamix.pipeline.select import SelectSpec
from datamix.pipeline.store import Store, carry
from datamix.pipeline.task_files import TaskReader, check_environment, environment
from datamix.pipeline.work_folder import ERRORS, WorkFolder, remove_ended

_WAIT_SECONDS = 2.0
_CONNECT_SECONDS = 10.0
_CHECK_SECONDS = 120.0  # until a node says its versions: its first process imports everything
_STALL_SECONDS = 20.0  # without any result; four times the longest task, if that is more
_STRAGGLER_SECONDS = 10.0  # three times the median task, if that is more
_MAX_CRASHES = 5  # of one task
_TASK_BYTES = 1 << 30  # memory: the tokenizer and a batch
_RECORD_BYTES = 64  # of memory, where a task sees every record


class RayEngine:
    """Runs tasks on the nodes of a cluster; ``address``: ``local`` for one of its own on this machine, or ``host:port``."""

    def __init__(
        self, address: str, cache: Path, out: Path, lease: Lease, screen: Screen, num_workers: int
    ) -> None:
        self._temporary = ""
        self._ray = _import_ray(address)
        self._out, self._folder = out, WorkFolder(cache, lease.id)
        self._refs: dict[Any, str] = {}
        self._seconds: list[float] = []  # that tasks took, as the processes that did them say
        self._epoch = 0
        try:
            self._connect(address, num_workers)
            remove_ended(cache, lease)
            self._writer = self._folder.create(out)
            self._where = json.dumps(
                [os.path.abspath(cache), os.path.abspath(out), str(self._folder.root / "shared")]
            )
            self._asked = json.dumps(environment())
            self._carry = self._ray.remote(carry_text)
            self._check_nodes(screen)
        except BaseException:
            self._stop()
            raise

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Receipt]]:
        """Yield ``(index, receipt)`` in the order tasks end; finished ones come first, at once."""
        queue: deque[tuple[int, Task]] = deque()
        for index, task in enumerate(tasks):
            done = Store(task.home).find(task.key)
            if done is None:
                queue.append((index, task))
            else:
                yield index, done
        phase = _Phase(time.monotonic())
        while queue or phase.waiting:
            while queue and len(self._refs) < self._max_in_flight():
                index, task = queue.popleft()
                phase.waiting.setdefault(task.key, []).append((index, task))
                if len(phase.waiting[task.key]) == 1:  # equal tasks are done once
                    self._submit(phase, task)
            ended = list(self._ended(phase))
            for key, receipt in ended:
                self._drop(key)
                for index, _ in phase.waiting.pop(key):
                    yield index, receipt
            self._repeat(phase, bool(ended), not queue)

    def warm(self, call: Callable[[Any], Any], spec: Any) -> None:
        """Nothing: each process of the cluster loads what its tasks need."""

    def close(self) -> None:
        """Cancel what still runs, and leave the cluster; stop it where it is our own."""
        import sys

        for ref in self._refs:
            with suppress(Exception):
                self._ray.cancel(ref, force=True)
        if sys.exc_info()[0] is None:
            self._folder.finish(self._out)
        else:
            self._folder.remove()
        self._stop()

    def _connect(self, address: str, num_workers: int) -> None:
        host, _, port = address.rpartition(":")
        if address != "local" and not (host and port.isdigit()):
            raise RecipeError(
                f"--address {address}: should be `local`, or the host:port of the head node of a Ray cluster."
            )
        quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
        try:
            if address == "local":
                self._temporary = tempfile.mkdtemp(prefix="datamix-ray-")
                self._ray.init(address="local", num_cpus=num_workers, include_dashboard=False,
                               object_store_memory=100 << 20, _temp_dir=self._temporary, **quiet)  # fmt: skip
            else:
                socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
                self._ray.init(address=address, **quiet)
        except Exception as error:
            said = " ".join(str(error).split())[:300]
            if address == "local":
                raise MachineError(
                    f"Ray does not start on this machine: {said}. Use --engine local."
                ) from error
            raise MachineError(
                f"No Ray cluster can be joined at {address}: {said}. Start one with `ray start --head --port {port}` there, let "
                f"this machine join it (`ray start --address {address}`), and set the same RAY_AUTH_MODE and RAY_AUTH_TOKEN everywhere."
            ) from error

    def _check_nodes(self, screen: Screen) -> None:
        """Ask a process of each node for its versions. Raises MachineError where they are not ours."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        nodes = [node for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        check = self._ray.remote(check_text)
        asked = {
            check.options(num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(self._asked, self._where): node
            for node in nodes
        }  # fmt: skip
        done, silent = self._ray.wait(list(asked), num_returns=len(asked), timeout=_CHECK_SECONDS)
        for ref in done:
            self._outcome(ref, f"The check of node {asked[ref]['NodeManagerAddress']}")
        if silent:
            names = ", ".join(sorted(asked[ref]["NodeManagerAddress"] for ref in silent)[:3])
            raise MachineError(
                f"{len(silent)} of {len(asked)} nodes of the Ray cluster did not answer within {_CHECK_SECONDS:.0f} seconds: {names}. "
                "Check that they run, or take them out of the cluster."
            )
        if not nodes:
            raise MachineError(
                "The Ray cluster has no node with a processor. Add one with `ray start --address`."
            )
        screen.say(
            f"Ray: {len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}, {self._num_cpus():.0f} processors."
        )

    def _num_cpus(self) -> float:
        return max(1.0, float(self._ray.cluster_resources().get("CPU", 1.0)))

    def _max_in_flight(self) -> int:
        return int(2 * self._num_cpus())

    def _submit(self, phase: _Phase, task: Task) -> None:
        nodes = [
            node["Resources"] for node in self._ray.nodes() if node["Alive"] and node["Resources"].get("CPU")
        ]
        share = min((r.get("memory", _TASK_BYTES) / r["CPU"] for r in nodes), default=_TASK_BYTES)
        largest = max((r.get("memory", _TASK_BYTES) for r in nodes), default=_TASK_BYTES)
        memory = int(min(largest - 1000, max(min(share, _TASK_BYTES), _RECORD_BYTES * num_records(task))))
        # Requests of one shape wait in one line, behind those that a silent node never answers: each epoch has a shape of its own.
        options = {
            "num_cpus": 1,
            "memory": memory + self._epoch,
            "max_retries": 0,
            "scheduling_strategy": "SPREAD",
        }
        ref = self._carry.options(**options).remote(self._writer.text(task), self._asked, self._where)
        self._refs[ref] = task.key
        phase.begun.setdefault(task.key, time.monotonic())

    def _ended(self, phase: _Phase) -> Iterator[tuple[str, Receipt]]:
        """Tasks that are done, by what Ray says or by their receipts. Raises what they met."""
        ready: list[Any] = []
        if self._refs:
            self._ray.wait(list(self._refs), num_returns=1, timeout=_WAIT_SECONDS)
            ready, _ = self._ray.wait(list(self._refs), num_returns=len(self._refs), timeout=0)
        keys = [self._refs.pop(ref) for ref in ready]
        for key, ref in zip(keys, ready, strict=True):
            if key not in phase.waiting:  # the second copy
                continue
            task = phase.waiting[key][0][1]
            try:
                self._outcome(ref, task.label)
            except _CrashedError as crash:
                phase.crashes[key] += 1
                if phase.crashes[key] >= _MAX_CRASHES:
                    raise MachineError(
                        f"{task.label} failed {_MAX_CRASHES} times: {crash}. What was finished is kept: use nodes with more memory or "
                        "fewer processors each, and run the same command again."
                    ) from None
        found = keys if ready else list(phase.waiting)
        for key in dict.fromkeys(found):
            if (
                key in phase.waiting
                and (receipt := Store(phase.waiting[key][0][1].home).find(key)) is not None
            ):
                yield key, receipt
            elif (
                key in phase.waiting and key not in self._refs.values()
            ):  # crashed, or its receipt comes late
                self._submit(phase, phase.waiting[key][0][1])

    def _drop(self, key: str) -> None:
        """A task is done: copies that have not begun shall not, and those on silent nodes are waited for no longer."""
        for ref in [ref for ref, of in self._refs.items() if of == key]:
            del self._refs[ref]
            with suppress(Exception):
                self._ray.cancel(ref, force=False)

    def _outcome(self, ref: Any, label: str) -> None:
        """Raise what a task met: an error of data or machine as it is, a crash of its process or node as ``_CrashedError``."""
        try:
            answer = json.loads(self._ray.get(ref, timeout=5))
        except self._ray.exceptions.RayTaskError as error:
            raise MachineError(
                f"{label} cannot run on a node of the Ray cluster: {error.cause or error}. Install datamix there."
            ) from None
        except Exception as error:  # a process or a node died, or lost its result
            raise _CrashedError(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}") from None
        self._seconds.append(float(answer.get("seconds", 0.0)))
        if answer["kind"]:
            raise ERRORS.get(answer["kind"], InternalError)(answer["message"])

    def _repeat(self, phase: _Phase, progress: bool, last: bool) -> None:
        """Begin again what a silent node may hold, and a second copy of what runs long when nothing else is left."""
        now = time.monotonic()
        if progress:
            phase.moved, phase.patience = now, 1
        limit = max(_STALL_SECONDS, 4 * max(self._seconds, default=0.0)) * phase.patience
        if phase.waiting and now - phase.moved > limit:
            phase.moved, phase.patience = now, 2 * phase.patience  # a task may just be long
            self._epoch += 1
            for tasks in phase.waiting.values():
                self._submit(phase, tasks[0][1])
        if not last or len(self._refs) >= self._num_cpus():
            return
        median = statistics.median(self._seconds) if self._seconds else 0.0
        for key, tasks in phase.waiting.items():
            if key not in phase.copied and now - phase.begun[key] > max(_STRAGGLER_SECONDS, 3 * median):
                phase.copied.add(key)
                self._epoch += 1
                self._submit(phase, tasks[0][1])

    def _stop(self) -> None:
        with suppress(Exception):
            self._ray.shutdown()
        if self._temporary:
            shutil.rmtree(self._temporary, ignore_errors=True)


class _Phase:
    """The tasks of one phase that are on their way."""

    def __init__(self, now: float) -> None:
        self.waiting: dict[str, list[tuple[int, Task]]] = {}
        self.begun: dict[str, float] = {}
        self.crashes: Counter[str] = Counter()
        self.copied: set[str] = set()
        self.moved, self.patience = now, 1


class _CrashedError(Exception):
    """The process or the node of a task died."""


def num_records(task: Task) -> int:
    """Records that a task sees all at once."""
    spec = task.spec
    sources = (
        spec.sources if isinstance(spec, SelectSpec) else [spec.source] if isinstance(spec, PackSpec) else []
    )
    return sum(shard.num_rows for source in sources for shard in source.shards)


def _import_ray(address: str) -> Any:
    """Ray, which reads its environment while it is imported. Raises RecipeError where it is not installed."""
    if address == "local" and "RAY_AUTH_MODE" not in os.environ:
        # else every user of this machine could run code in it
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no telemetry
    try:
        import ray
    except ImportError:
        raise RecipeError(
            '--engine ray needs Ray, which is not installed. In the checkout of datamix: `pip install ".[ray]"`; or use --engine workers.'
        ) from None
    return ray


def carry_text(text: str, asked: str, where: str) -> str:
    """In a process of the cluster: carry out one task; ``{"kind": "", "message": "", "seconds": S}`` or the error that it met."""
    started = time.monotonic()
    try:
        reader = _ready(asked, where)
        task = reader.task(text)
        if task.home.is_dir():
            carry(task)
    except DatamixError as error:
        return json.dumps({"kind": type(error).__name__, "message": str(error)})
    except Exception as error:
        failure: DatamixError = machine_failure(error) or InternalError(
            f"{type(error).__name__}: {error}. This is a bug in datamix: please report it."
        )
        return json.dumps({"kind": type(failure).__name__, "message": str(failure)})
    return json.dumps({"kind": "", "message": "", "seconds": time.monotonic() - started})


def check_text(asked: str, where: str) -> str:
    """In a process of a node: whether it has the versions and the disks of the build."""
    try:
        _ready(asked, where)
    except DatamixError as error:
        return json.dumps({"kind": type(error).__name__, "message": str(error)})
    return json.dumps({"kind": "", "message": ""})


@cache
def _ready(asked: str, where: str) -> TaskReader:
    """Once a process: one thread, versions and disks checked."""
    one_thread()
    cache, out, shared = json.loads(where)
    place = f"Node {socket.gethostname()} of the Ray cluster"
    check_environment(json.loads(asked), place)
    if not os.path.isdir(shared):
        raise MachineError(
            f"{place} does not have the cache {cache}. Mount cache, inputs and OUT under the same paths on every node."
        )
    return TaskReader(Path(shared), Path(cache), Path(out))
