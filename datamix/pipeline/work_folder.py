"""``CACHE/work``: builds whose tasks other processes carry out, and what builds and workers tell each other there.

    work/BUILD/build.json        what the build is, its environment; ``finished`` once its manifest is written
    work/BUILD/tasks/KEY.json    an open task; it goes when the task is done or failed
    work/BUILD/claims/KEY        the workers that began it, a line each: the last one works on it
    work/BUILD/failed/KEY.json   what is wrong with the data or the recipe
    work/BUILD/shared/           what many tasks hold alike

BUILD is the name of the build's lease, a worker is known by its own: who beats no more for a minute, by the clock of the file
system, is dead. A claim is made by creating a file; the claim of a dead worker is taken over by adding a line. Where two take
the same task both carry it out, and the receipt counts once: so nothing here needs a lock that can be trusted.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamix.core.contracts import Task
from datamix.core.errors import DataError, DatamixError, InternalError, MachineError, RecipeError
from datamix.pipeline.leases import DEAD_SECONDS, Lease
from datamix.pipeline.task_files import TaskReader, TaskWriter, environment, write_whole

ERRORS: dict[str, type[DatamixError]] = {
    kind.__name__: kind for kind in (RecipeError, DataError, MachineError, InternalError)
}


@dataclass(frozen=True)
class WorkFolder:
    """One build's folder in ``CACHE/work``."""

    cache: Path
    build: str  # the name of its lease

    @property
    def root(self) -> Path:
        return self.cache / "work" / self.build

    @classmethod
    def all(cls, cache: Path) -> list[WorkFolder]:
        """Every build that left a folder, sorted by name."""
        with suppress(OSError):
            return [cls(cache, name) for name in sorted(os.listdir(cache / "work"))]
        return []

    def create(self, out: Path) -> TaskWriter:
        """Make the folder."""
        for name in ("tasks", "claims", "failed", "shared"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self._describe(out, False)
        return TaskWriter(self.root / "shared")

    def finish(self, out: Path) -> None:
        """Say that the set is whole, and take away everything else."""
        self._describe(out, True)
        for name in ("tasks", "claims", "failed", "shared"):
            shutil.rmtree(self.root / name, ignore_errors=True)

    def remove(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def _describe(self, out: Path, finished: bool) -> None:
        value = {"cache": os.path.abspath(self.cache), "out": os.path.abspath(out),
                 "environment": environment(), "finished": finished}  # fmt: skip
        write_whole(self.root / "build.json", json.dumps(value))

    def description(self) -> dict[str, Any]:
        """``cache``, ``out``, ``environment`` and ``finished``; empty where the folder is gone or just being made."""
        return _read(self.root / "build.json")

    def open(self, key: str, text: str) -> None:
        """Let workers have a task."""
        write_whole(self.root / "tasks" / f"{key}.json", text)

    def open_keys(self) -> list[str]:
        """The tasks that are not done, sorted."""
        with suppress(FileNotFoundError):
            return sorted(n.removesuffix(".json") for n in os.listdir(self.root / "tasks") if n[0] != ".")
        return []

    def claimed_keys(self) -> set[str]:
        """The tasks that somebody began."""
        with suppress(FileNotFoundError):
            return set(os.listdir(self.root / "claims"))
        return set()

    def begun_by(self, key: str) -> list[str]:
        """The workers that began a task, in order, and what they said when they gave it back."""
        with suppress(OSError):
            return (self.root / "claims" / key).read_text(encoding="utf-8").splitlines()
        return []

    def is_free(self, key: str, lease: Lease) -> bool:
        """Whether a task that was begun has nobody who works on it: given back, or its worker is dead."""
        if lines := self.begun_by(key):
            return lines[-1].startswith("- ") or not lease.is_beating(lines[-1])
        path = self.root / "claims" / key  # killed before it wrote its name
        return path.exists() and lease.age_of(path) >= DEAD_SECONDS

    def claim(self, key: str, worker: str) -> bool:
        """Begin a task that nobody has begun."""
        with suppress(FileExistsError, FileNotFoundError):
            handle = os.open(self.root / "claims" / key, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(f"{worker}\n")
            return True
        return False

    def note(self, key: str, line: str) -> None:
        """Add a line to a claim: who takes it over, or why it was given back (``- REASON``)."""
        with suppress(FileNotFoundError), (self.root / "claims" / key).open("a", encoding="utf-8") as stream:
            stream.write(" ".join(line.split()) + "\n")

    def read(self, key: str, reader: TaskReader) -> Task | None:
        """An open task; None where another worker has just done it."""
        try:
            text = (self.root / "tasks" / f"{key}.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return reader.task(text)

    def close(self, key: str) -> None:
        """A task is done, or failed: nobody shall begin it any more."""
        (self.root / "tasks" / f"{key}.json").unlink(missing_ok=True)
        (self.root / "claims" / key).unlink(missing_ok=True)

    def fail(self, key: str, error: DatamixError) -> None:
        """Tell the build what is wrong, and close the task."""
        with suppress(FileNotFoundError):  # the build ended meanwhile
            value = {"kind": type(error).__name__, "message": str(error)}
            write_whole(self.root / "failed" / f"{key}.json", json.dumps(value))
        self.close(key)

    def failure(self, key: str) -> DatamixError | None:
        """What a worker found wrong with a task, as the error that this process would have met."""
        value = _read(self.root / "failed" / f"{key}.json")
        return ERRORS.get(str(value["kind"]), InternalError)(str(value["message"])) if value else None


def _read(path: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}
    return {}


def remove_ended(cache: Path, lease: Lease) -> None:
    """Remove the folders of builds that ended or died; ``lease`` is this build's."""
    for folder in WorkFolder.all(cache):
        if folder.build != lease.id and not lease.is_beating(folder.build):
            folder.remove()
