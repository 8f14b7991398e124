"""Finished work by its key: a folder a task, which exists only when the task is done.

A task writes into a private folder; its receipt is written there last; one rename makes both visible. So a process
killed at any moment leaves either the whole result or nothing that counts, two workers that do the same task end with
the same bytes, and "already done" is a look at one path. Resume, caching and cheap re-mixing are all that look.
Cost: two fsyncs a task.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamix.core.contracts import Receipt, Task
from datamix.core.errors import DataError

_RECEIPT = "receipt.json"


@dataclass(frozen=True)
class Store:
    """Results below ``root``, one folder a key. Small enough to pickle."""

    root: Path

    def folder(self, key: str) -> Path:
        """Where the result of the task ``key`` lies once it is done."""
        return self.root / key[:2] / key

    def find(self, key: str) -> Receipt | None:
        """The receipt of a finished task, or None. A folder whose files are gone or cut short is not finished."""
        folder = self.folder(key)
        try:
            said = json.loads((folder / _RECEIPT).read_bytes())
            whole = said["key"] == key and all(
                (folder / name).stat().st_size == size for name, size in said["files"].items()
            )
        except (OSError, ValueError, KeyError):
            return None
        return Receipt(key, said["files"], said["counts"], folder) if whole else None

    def sweep(self) -> None:
        """Throw away what killed workers left half-written. Call it only where no other build runs."""
        shutil.rmtree(self.root / "partial", ignore_errors=True)

    def finished(self) -> list[str]:
        """Every finished key, sorted."""
        return sorted(p.parent.name for p in self.root.glob(f"??/*/{_RECEIPT}"))

    def num_bytes(self) -> int:
        """Bytes of everything below ``root``."""
        return sum(p.stat().st_size for p in self.root.rglob("*") if p.is_file())

    def remove(self, key: str) -> None:
        """Forget one result."""
        shutil.rmtree(self.folder(key), ignore_errors=True)


def carry(task: Task) -> Receipt:
    """Do one task, or find it done. At-least-once plus equal bytes is exactly-once.

    Raises whatever the task raises, with nothing half-written left where results are looked for.
    """
    store = Store(task.home)
    done = store.find(task.key)
    if done is not None:
        return done
    partial = store.root / "partial" / f"{task.key[:16]}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    partial.mkdir(parents=True)
    try:
        counts = task.call(task.spec, partial)
        files = {
            p.relative_to(partial).as_posix(): p.stat().st_size
            for p in sorted(partial.rglob("*"))
            if p.is_file()
        }
        receipt: dict[str, Any] = {"key": task.key, "files": files, "counts": counts}
        (partial / _RECEIPT).write_text(json.dumps(receipt, ensure_ascii=False), encoding="utf-8")
        sync([*partial.rglob("*"), partial])
        _publish(partial, store.folder(task.key))
    except OSError as error:
        if error.errno in (28, 122):  # ENOSPC, EDQUOT
            raise DataError(
                f"No space left while working on {task.label} below {store.root}. What was finished is kept: free some "
                "space, or name another place with --cache, and run the same command again."
            ) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    found = store.find(task.key)
    if found is None:
        raise DataError(
            f"The result of {task.label} vanished from {store.root} while it was written. Run it again."
        )
    return found


def sync(paths: Iterable[Path]) -> None:
    """Flush files and folders to the disk."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _publish(partial: Path, final: Path) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        try:
            os.rename(partial, final)
            sync([final.parent])
            return
        except OSError:  # another worker was first, or a broken result stands there
            if not final.exists():
                raise
            if (final / _RECEIPT).exists() and Store(final.parent.parent).find(final.name):
                return
            shutil.rmtree(final, ignore_errors=True)
