"""Finished work by its key: what is visible is whole and on the disk, whatever stops a worker."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from datamix.core.contracts import Task
from datamix.core.errors import DataError, MachineError
from datamix.pipeline.store import Store, carry

KEY = "ab" + "0" * 62


def write(spec: str, folder: Path) -> dict[str, Any]:
    (folder / "data.bin").write_text(spec)
    (folder / "inner").mkdir()
    (folder / "inner" / "more.bin").write_text(spec * 2)
    return {"length": len(spec)}


def task(home: Path, call: Any = write) -> Task:
    return Task("a task", KEY, call, "content", home)


def test_files_and_folders_are_flushed_before_the_result_is_visible_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(handle: int) -> None:
        events.append(("flush", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def noted_rename(source: Path, target: Path) -> None:
        events.append(("rename", str(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "rename", noted_rename)
    folder = carry(task(tmp_path)).folder
    place = events.index(("rename", str(folder)))
    before = {Path(name).name for kind, name in events[:place] if kind == "flush"}
    assert {"data.bin", "inner", "more.bin", "receipt.json"} < before
    assert ("flush", str(folder.parent)) in events[place:]
    num_open = len(os.listdir("/proc/self/fd"))
    Store(tmp_path).remove(KEY)
    carry(task(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == num_open


def test_a_task_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    first = carry(task(tmp_path))

    def never(spec: str, folder: Path) -> dict[str, Any]:
        raise AssertionError

    assert carry(task(tmp_path, never)) == first
    assert Store(tmp_path).finished() == [KEY]
    assert first.counts == {"length": 7}


def test_a_task_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fails(spec: str, folder: Path) -> dict[str, Any]:
        write(spec, folder)
        raise DataError("broken input")

    with pytest.raises(DataError, match="broken input"):
        carry(task(tmp_path, fails))
    assert not list((tmp_path / "partial").iterdir())
    assert Store(tmp_path).finished() == []


@pytest.mark.parametrize("number", [28, 122])
def test_a_full_disk_is_said_with_the_task_and_the_place(number: int, tmp_path: Path) -> None:
    def full(spec: str, folder: Path) -> dict[str, Any]:
        raise OSError(number, "full")

    with pytest.raises(MachineError, match=f"No space left while working on a task below {tmp_path}"):
        carry(task(tmp_path, full))


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EIO, r"Input/output error while .*Check the disk .*, or name another place with --cache\."),
        (errno.EFBIG, r"File too large while .*ulimit -f unlimited.*--cache"),
        (errno.EMFILE, r"Too many open files while .*ulimit -n 4096.*--workers 1\)\. Finished"),
        (errno.EPERM, r"Operation not permitted while .*lsattr -d"),
        (errno.EROFS, r"Read-only file system while .*Mount it writable, or name"),
    ],
)
def test_another_fault_of_the_disk_is_said_with_advice(tmp_path: Path, number: int, words: str) -> None:
    def breaks(spec: str, folder: Path) -> dict[str, Any]:
        raise OSError(number, "whatever")

    with pytest.raises(MachineError, match=words):
        carry(task(tmp_path, breaks))


def test_a_full_out_is_not_told_to_move_its_cache(tmp_path: Path) -> None:
    def full(spec: str, folder: Path) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(MachineError, match=r"choose another folder with -o\.") as caught:
        carry(task(tmp_path / ".building", full))
    assert "--cache" not in str(caught.value)


def test_a_result_whose_files_cannot_be_listed_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("inner"):
            raise PermissionError(errno.EPERM, "refused", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(MachineError, match="Operation not permitted while"):
        carry(task(tmp_path))
    assert Store(tmp_path).finished() == []


def test_a_fault_of_an_input_is_passed_on(tmp_path: Path) -> None:
    def breaks(spec: str, folder: Path) -> dict[str, Any]:
        raise OSError(errno.EIO, "Input/output error", "/mnt/data.jsonl")

    with pytest.raises(OSError, match=r"/mnt/data\.jsonl"):
        carry(task(tmp_path, breaks))


def test_a_result_that_does_not_arrive_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "rename", lambda source, target: None)
    with pytest.raises(DataError, match="The result of a task vanished"):
        carry(task(tmp_path))


def test_two_workers_at_one_task_end_with_one_result(tmp_path: Path) -> None:
    def slower(spec: str, folder: Path) -> dict[str, Any]:
        carry(task(tmp_path))  # another worker is first
        return write(spec, folder)

    made = carry(task(tmp_path, slower))
    assert made == Store(tmp_path).find(KEY)
    assert not list((tmp_path / "partial").iterdir())


def test_a_result_is_found_counted_and_removed(tmp_path: Path) -> None:
    done = carry(task(tmp_path))
    store = Store(tmp_path)
    assert store.find(KEY) == done
    assert store.num_bytes() == sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) > 21
    store.remove(KEY)
    assert store.find(KEY) is None
