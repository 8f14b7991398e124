"""Finished work by its key: a folder a task, which exists only when the task is done.

A task writes into a private folder; its receipt is written there last; one rename makes both visible. So a process
killed at any moment leaves either the whole result or nothing that counts, two workers that do the same task end with
the same bytes, and "already done" is a look at one path. Resume, caching and cheap re-mixing are all that look.
A receipt holds a digest of every file and of its counts, so that damage is found before it is used.
Cost: two fsyncs a task, one hash of what it wrote (xxh3, 5 to 10 GB/s), and a stat a file when a result is found.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from datamix.core.contracts import Receipt, Task
from datamix.core.errors import DataError, RecipeError
from datamix.core.machine import failures_at, files_below
from datamix.pipeline.leases import partial_name

PARTIAL = "partial"  # folder of half-written results
_RECEIPT = "receipt.json"
_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class Store:
    """Results below ``root``, one folder a key. Small enough to pickle."""

    root: Path

    def folder(self, key: str) -> Path:
        """The folder of the result of the task ``key`` once it is done."""
        return self.root / key[:2] / key

    def find(self, key: str) -> Receipt | None:
        """The receipt of a finished task, or None: also where a file of it is missing, cut short or has other content.

        A file is trusted while size, times and inode are those that its receipt recorded, else it is hashed (5 to 10 GB/s).
        """
        folder = self.folder(key)
        try:
            receipt = json.loads((folder / _RECEIPT).read_bytes())
            files, counts = receipt["files"], receipt["counts"]
            if receipt["key"] != key or receipt["seal"] != _seal(key, files, counts):
                return None
            for name, (size, digest, *state) in files.items():
                stat = (folder / name).stat()
                if stat.st_size != size:
                    return None
                if _state(stat) != state and _digest(folder / name) != digest:
                    return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return Receipt(key, {name: entry[0] for name, entry in files.items()}, counts, folder)

    def is_native(self, key: str) -> bool:
        """Whether the files of a result are those that were written here: times and inodes as its receipt recorded."""
        try:
            files = json.loads((self.folder(key) / _RECEIPT).read_bytes())["files"]
            return all(_state((self.folder(key) / name).stat()) == entry[2:] for name, entry in files.items())
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def is_damaged(self, key: str) -> bool:
        """Whether a result that ``find`` does not accept was damaged, not left by 0.1, which wrote no digests."""
        try:
            return "seal" in json.loads((self.folder(key) / _RECEIPT).read_bytes())
        except (OSError, ValueError, TypeError):
            return self.folder(key).exists()

    def finished(self) -> list[str]:
        """Every finished key, sorted."""
        return sorted(p.parent.name for p in self.root.glob(f"??/*/{_RECEIPT}"))

    def num_bytes(self) -> int:
        """Bytes of everything below ``root``."""
        total = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                with suppress(OSError):  # of another build, which has just moved it
                    total += os.lstat(os.path.join(folder, name)).st_size
        return total

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
    was_damaged = store.is_damaged(task.key)
    partial = store.root / PARTIAL / partial_name(task.key)
    is_out = store.root.name == ".building"  # else the cache
    move = "choose another folder with -o" if is_out else "name another place with --cache"
    try:
        with failures_at(store.root, f"working on {task.label}", move):
            partial.mkdir(parents=True)
            counts = task.call(task.spec, partial)
            made = files_below(partial)
            files = {
                p.relative_to(partial).as_posix(): [p.stat().st_size, _digest(p), *_state(p.stat())]
                for p in made
            }
            counts = json.loads(json.dumps(counts))
            receipt = {
                "key": task.key,
                "files": files,
                "counts": counts,
                "seal": _seal(task.key, files, counts),
            }
            (partial / _RECEIPT).write_text(json.dumps(receipt, ensure_ascii=False), encoding="utf-8")
            folders = {folder for p in made for folder in p.parents if folder.is_relative_to(partial)}
            sync([*made, partial / _RECEIPT, *folders, partial])
            _publish(partial, store.folder(task.key))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    receipt_read = store.find(task.key)
    if receipt_read is None:
        raise DataError(
            f"The result of {task.label} vanished from {store.root} while it was written. Run it again."
        )
    return replace(receipt_read, replaced_damage=was_damaged)


def _seal(key: str, files: Any, counts: Any) -> str:
    """A digest of what a receipt says; of the files without their times and inodes."""
    whole = {name: entry[:2] for name, entry in files.items()}
    text = json.dumps([key, whole, counts], sort_keys=True, ensure_ascii=True)
    return xxhash.xxh3_128_hexdigest(text.encode())


def _state(stat: os.stat_result) -> list[int]:
    return [stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _digest(path: Path) -> str:
    """xxh3-128 of a file's content."""
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sync(paths: Iterable[Path]) -> None:
    """Flush files and folders to the disk."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _publish(partial: Path, final: Path) -> None:
    final.parent.mkdir(exist_ok=True)  # its root is there, or the build has ended
    for _ in range(2):
        try:
            os.rename(partial, final)
            sync([final.parent])
            return
        except OSError:  # another worker was first, or a broken result is in its place
            if not final.exists():
                raise
            if (final / _RECEIPT).exists() and Store(final.parent.parent).find(final.name):
                return
            shutil.rmtree(final, ignore_errors=True)


def check_cache(cache: Path) -> None:
    """Raise RecipeError where the cache, or a folder above it, is a file."""
    for path in (cache, *cache.parents):
        if path.exists() and not path.is_dir():
            below = "" if path == cache else f" cannot be made: {path}"
            raise RecipeError(f"The cache {cache}{below} is a file. Name a folder with --cache.")
