"""No command replaces an input, or a file that was not to be replaced; a kill or a full disk leaves the old file whole."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
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


@pytest.mark.parametrize("name", ["same", "hard", "soft", "dots", "folder", "url"])
@pytest.mark.parametrize("command", ["dedupe", "convert", "init"])
def test_an_output_that_is_an_input_by_any_name_is_refused(tmp_path: Path, name: str, command: str) -> None:
    names = other_names(tmp_path)
    source, target = tmp_path / "a.jsonl", names.get(name, names["same"])
    before, read = source.read_bytes(), f"file://{source}" if name == "url" else source
    words = {
        "dedupe": ["dedupe", read, "-o", target, "--overwrite"],
        "convert": ["convert", read, target, "--to", "messages", "--overwrite"],
        "init": ["init", read, "-o", target, "--overwrite"],
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
        with complete_files([target], overwrite=True) as (draft,):
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
    assert again.returncode == 2
    assert "is the input" in again.stderr
    assert (tmp_path / "data" / "out.jsonl").read_bytes() == before


def test_init_never_replaces_a_file_that_a_catalogue_names(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "elsewhere" / "a.jsonl", ROWS)
    catalogue = tmp_path / "dataset_info.json"
    catalogue.write_text(json.dumps({"mine": {"file_name": "elsewhere/a.jsonl"}}))
    before = source.read_bytes()
    done = datamix("init", catalogue, "-o", source, "--overwrite")
    assert done.returncode == 2
    assert "is the input" in done.stderr
    assert source.read_bytes() == before


@pytest.mark.parametrize("target", ["s3://bucket/x", "plain/x", "plain", "no/x.jsonl"])
def test_a_refused_deduplication_creates_nothing(tmp_path: Path, target: str) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "plain").write_text("a file")
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "datamix", "dedupe", str(source), "-o", target, "--overwrite"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_that_appears_meanwhile_stays_and_nothing_else_appears(tmp_path: Path) -> None:
    first, second = tmp_path / "audit", tmp_path / "out.jsonl"

    def write() -> None:
        with complete_files([first, second], overwrite=False) as drafts:
            for draft in drafts:
                draft.write_text("ours")
            second.write_text("of somebody else")

    with pytest.raises(RecipeError, match="appeared"):
        write()
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl"]
    assert second.read_text() == "of somebody else"


@pytest.mark.parametrize(("kind", "name"), [("convert", "out.csv"), ("dedupe", "out.jsonl")])
def test_a_kill_leaves_nothing_that_the_next_run_does_not_sweep(tmp_path: Path, kind: str, name: str) -> None:
    source, target = write_jsonl(tmp_path / "a.jsonl", ROWS), tmp_path / name
    call = {
        "convert": f"convert.convert({str(source)!r}, {str(target)!r}, 'alpaca')",
        "dedupe": f"deduplicate.deduplicate([{str(source)!r}], {str(target)!r}, DedupeSpec())",
    }[kind]
    code = f"""
import os, signal
from datamix.dedup import DedupeSpec
from datamix.jobs import convert, deduplicate
def kill(*a): os.kill(os.getpid(), signal.SIGKILL)
convert.unshape_counted = deduplicate.decide = kill
{call}
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".datamix-*"))) > 1
    assert not target.exists()
    if kind == "convert":
        convert(str(source), str(target), "alpaca")
    else:
        deduplicate([str(source)], str(target), DedupeSpec())
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_draft_that_another_container_writes_stays(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()  # a process id of nobody here
    draft = tmp_path / f".datamix-{gone.pid}-0123abcd-out.jsonl"
    with draft.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with complete_files([tmp_path / "out.jsonl"], overwrite=False):
            assert draft.exists()
    with complete_files([tmp_path / "out.jsonl"], overwrite=True):
        assert not draft.exists()


def test_a_full_disk_while_the_audit_is_written_replaces_neither_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ROWS)
    for name in ("out.jsonl", "out.removed.parquet"):
        (tmp_path / name).write_text("older")

    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fill)
    with pytest.raises(MachineError, match="No space left"):
        deduplicate([str(source)], str(tmp_path / "out.jsonl"), DedupeSpec(), overwrite=True)
    assert {p.name for p in tmp_path.iterdir()} == {"a.jsonl", "out.jsonl", "out.removed.parquet"}
    assert (tmp_path / "out.jsonl").read_text() == (tmp_path / "out.removed.parquet").read_text() == "older"


def test_names_of_255_bytes_are_written(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ROWS)
    for name in ("n" * 249 + ".jsonl", "名" * 83 + ".jsonl"):
        convert(str(source), str(tmp_path / name), "messages")
        assert (tmp_path / name).stat().st_size


@pytest.mark.parametrize(
    ("target", "code", "words"),
    [
        ("/dev/stdout", 2, "is no regular file"),
        ("/dev/null", 2, "is no regular file"),
        ("/proc/x.jsonl", 4, "cannot be written there"),
    ],
)
def test_targets_that_are_no_files_are_refused_in_words(
    tmp_path: Path, target: str, code: int, words: str
) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ROWS)
    done = datamix("convert", source, target, "--to", "messages", "--overwrite")
    assert done.returncode == code
    assert words in done.stderr


def test_deduplicating_files_into_their_own_folder_is_refused_by_any_name(tmp_path: Path) -> None:
    sources = [write_jsonl(tmp_path / "in" / name, [*ROWS, *ROWS]) for name in ("a.jsonl", "b.jsonl")]
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    (tmp_path / "other").mkdir()
    os.link(sources[1], tmp_path / "other" / "b.jsonl")
    before = [source.read_bytes() for source in sources]
    for folder in ("in", "linked", "other"):
        done = datamix("dedupe", *sources, "-o", tmp_path / folder, "--overwrite")
        assert done.returncode == 2
        assert "is the input" in done.stderr
    assert [source.read_bytes() for source in sources] == before
    assert [p.name for p in (tmp_path / "other").iterdir()] == ["b.jsonl"]


def test_a_folder_that_is_a_link_to_nowhere_is_refused_with_its_name(tmp_path: Path) -> None:
    sources = [write_jsonl(tmp_path / name, ROWS) for name in ("a.jsonl", "b.jsonl")]
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    done = datamix("dedupe", *sources, "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "is a link that leads nowhere. Choose another name" in done.stderr
    assert not (tmp_path / "gone").exists()
