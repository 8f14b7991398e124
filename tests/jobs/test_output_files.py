"""No command replaces an input, or a file that was not to be replaced; a kill or a full disk leaves the old file whole."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small import alpaca, datamix, write_jsonl

from datamix.core.errors import MachineError, RecipeError
from datamix.dedup import DedupeSpec
from datamix.jobs.convert import convert
from datamix.jobs.deduplicate import deduplicate
from datamix.jobs.output_files import check_outputs, complete_files

ROWS = alpaca(["问题", "question"], 40)


def other_names(folder: Path) -> dict[str, Path]:
    """Other names of ``a.jsonl``."""
    source = write_jsonl(folder / "a.jsonl", ROWS)
    os.link(source, folder / "hard.jsonl")
    (folder / "soft.jsonl").symlink_to(source)
    (folder / "linked").symlink_to(folder)
    (folder / "sub").mkdir()
    return {
        "same": source,
        "hard": folder / "hard.jsonl",
        "soft": folder / "soft.jsonl",
        "dots": folder / "sub" / ".." / "a.jsonl",
        "folder": folder / "linked" / "a.jsonl",
    }


@pytest.mark.parametrize("name", ["same", "hard", "soft", "dots", "folder"])
@pytest.mark.parametrize("command", ["dedupe", "convert", "init"])
def test_an_output_that_is_an_input_by_any_name_is_refused(tmp_path: Path, name: str, command: str) -> None:
    source, target = tmp_path / "a.jsonl", other_names(tmp_path)[name]
    before = source.read_bytes()
    words = {
        "dedupe": ["dedupe", source, "-o", target, "--overwrite"],
        "convert": ["convert", source, target, "--to", "messages", "--overwrite"],
        "init": ["init", source, "-o", target, "--overwrite"],
    }[command]
    done = datamix(*words)
    assert done.returncode == 2, done.stderr
    assert "is the input" in done.stderr
    assert source.read_bytes() == before


def test_the_audit_of_a_deduplication_never_replaces_an_input(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ROWS)
    convert(str(source), str(tmp_path / "b.removed.parquet"), "alpaca")
    before = (tmp_path / "b.removed.parquet").read_bytes()
    with pytest.raises(RecipeError, match="is the input"):
        deduplicate(
            [str(tmp_path / "b.removed.parquet")], str(tmp_path / "b.parquet"), DedupeSpec(), overwrite=True
        )
    assert (tmp_path / "b.removed.parquet").read_bytes() == before


@pytest.mark.parametrize("kind", ["file", "folder", "fifo", "dangling"])
@pytest.mark.parametrize("command", ["dedupe", "convert", "init"])
def test_what_exists_is_replaced_only_when_asked_and_only_a_file(
    tmp_path: Path, kind: str, command: str
) -> None:
    source, target = write_jsonl(tmp_path / "a.jsonl", ROWS), tmp_path / "out.jsonl"
    if kind == "file":
        target.write_text("older")
    elif kind == "folder":
        target.mkdir()
    elif kind == "fifo":
        os.mkfifo(target)
    else:
        target.symlink_to(tmp_path / "nothing.jsonl")
    words = {
        "dedupe": ["dedupe", source, "-o", target],
        "convert": ["convert", source, target, "--to", "messages"],
        "init": ["init", source, "-o", target],
    }[command]
    done = datamix(*words)
    assert done.returncode == 2
    assert "exists" in done.stderr
    if kind == "file":
        assert target.read_text() == "older"
        assert datamix(*words, "--overwrite").returncode == 0
        assert target.read_text() != "older"
    elif kind in ("folder", "fifo"):
        assert datamix(*words, "--overwrite").returncode == 2


def test_an_existing_audit_alone_is_refused_too(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "out.removed.parquet").write_text("mine")
    with pytest.raises(RecipeError, match="exists"):
        deduplicate([str(source)], str(tmp_path / "out.jsonl"), DedupeSpec())
    assert (tmp_path / "out.removed.parquet").read_text() == "mine"
    assert not (tmp_path / "out.jsonl").exists()


def test_a_part_file_of_the_user_is_not_touched(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "out.jsonl.part").write_text("my download")
    convert(str(source), str(tmp_path / "out.jsonl"), "messages")
    assert (tmp_path / "out.jsonl.part").read_text() == "my download"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "out.jsonl", "out.jsonl.part"]


def test_a_full_disk_leaves_the_older_file_and_no_half_one(tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    target.write_text("older")

    def fill() -> None:
        with complete_files([target]) as (draft,):
            draft.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(MachineError, match="No space left"):
        fill()
    assert target.read_text() == "older"
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_kill_leaves_the_older_file_and_the_next_run_sweeps(tmp_path: Path) -> None:
    source, target = write_jsonl(tmp_path / "a.jsonl", ROWS), tmp_path / "out.jsonl"
    target.write_text("older")
    code = f"""
import os, signal
from datamix.jobs import convert
convert.unshape_counted = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
convert.convert({str(source)!r}, {str(target)!r}, "messages", overwrite=True)
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert target.read_text() == "older"
    assert len(list(tmp_path.glob(".datamix-*"))) == 1
    convert(str(source), str(target), "messages", overwrite=True)
    assert list(tmp_path.glob(".datamix-*")) == []
    assert json.loads(target.read_text(encoding="utf-8").splitlines()[0])["messages"]


def test_a_link_is_followed_and_permissions_stay(tmp_path: Path) -> None:
    source, real = write_jsonl(tmp_path / "a.jsonl", ROWS), tmp_path / "v1.jsonl"
    real.write_text("older")
    real.chmod(0o640)
    (tmp_path / "latest.jsonl").symlink_to(real)
    convert(str(source), str(tmp_path / "latest.jsonl"), "messages", overwrite=True)
    assert (tmp_path / "latest.jsonl").is_symlink()
    assert real.read_text() != "older"
    assert real.stat().st_mode & 0o777 == 0o640


def test_urls_and_missing_folders_are_refused(tmp_path: Path) -> None:
    for name, reason in (
        ("s3://bucket/x.jsonl", "only local"),
        (str(tmp_path / "no" / "x.jsonl"), "no folder"),
    ):
        with pytest.raises(RecipeError, match=reason):
            check_outputs([Path(name)], [], overwrite=False)


def test_deduplicating_a_folder_into_itself_twice_is_refused_the_second_time(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "data" / "a.jsonl", [*ROWS, *ROWS])
    words = ["dedupe", tmp_path / "data", "-o", tmp_path / "data" / "out.jsonl"]
    assert datamix(*words).returncode == 0
    before = (tmp_path / "data" / "out.jsonl").read_bytes()
    again = datamix(*words, "--overwrite")
    assert again.returncode in (2, 3)
    assert (tmp_path / "data" / "out.jsonl").read_bytes() == before
