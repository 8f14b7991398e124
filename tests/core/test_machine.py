"""Failures of the machine are one paragraph with advice that can help, and exit 4."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from small import datamix, recipe

from datamix.commands.cli import main
from datamix.core.errors import MachineError
from datamix.core.machine import _ADVICE, advice, failures_at, files_below, machine_failure


@pytest.mark.parametrize("number", sorted(_ADVICE))
def test_every_failure_has_advice_of_its_own(number: int) -> None:
    error = OSError(number, os.strerror(number), "/data/set")
    known = machine_failure(error)
    assert known is not None
    assert known.exit_code == 4
    assert "(/data/set)" in str(known)
    assert "check the disk, its limits" not in str(known).lower()
    assert advice(error, "go elsewhere").endswith(".")


def test_only_failures_below_the_place_name_its_option(tmp_path: Path) -> None:
    for name in (None, str(tmp_path / "a"), tmp_path / "a", os.fsencode(tmp_path)):
        with pytest.raises(MachineError, match="or move"), failures_at(tmp_path, "writing", "move"):
            raise OSError(errno.EIO, "broken", name)
    for error in (
        OSError(errno.EIO, "broken", f"{tmp_path}2"),
        OSError(errno.EDOM, "no number"),
        OSError("no errno"),
    ):
        with pytest.raises(OSError, match=r"no|broken") as caught, failures_at(tmp_path, "writing", "move"):
            raise error
        assert caught.value is error


def test_memory_and_threads_are_the_machines_other_errors_are_not() -> None:
    assert "more memory" in str(machine_failure(MemoryError()))
    assert "ulimit -u" in str(machine_failure(RuntimeError("can't start new thread")))
    assert "ulimit -u" in str(machine_failure(pa.ArrowException("Failed to launch worker thread: no")))
    assert machine_failure(RuntimeError("something else")) is None
    assert machine_failure(OSError("no errno")) is None
    assert "ulimit -f" in str(machine_failure(OSError("10000 requested and 1984 written")))


def limited(name: int, limit: int, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "datamix", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(name, (limit, limit)),
    )


def test_a_limit_of_file_sizes_is_said_with_the_option_that_helps_and_the_rerun_finishes(
    tmp_path: Path,
) -> None:
    path = recipe(tmp_path)
    cache = limited(resource.RLIMIT_FSIZE, 4096, "build", path, "-o", tmp_path / "set")
    assert cache.returncode == 4
    assert "ulimit -f unlimited" in cache.stderr
    assert "--cache" in cache.stderr
    assert datamix("build", path, "-o", tmp_path / "first").returncode == 0
    out = limited(resource.RLIMIT_FSIZE, 16384, "build", path, "-o", tmp_path / "set")
    assert out.returncode == 4
    assert "choose another folder with -o" in out.stderr
    assert datamix("build", path, "-o", tmp_path / "set").returncode == 0


@pytest.mark.parametrize("command", ["convert", "dedupe"])
def test_a_limit_of_file_sizes_stops_other_commands_in_words_too(tmp_path: Path, command: str) -> None:
    recipe(tmp_path)
    target = tmp_path / "out.jsonl"
    options = (target, "--to", "messages") if command == "convert" else ("-o", target)
    done = limited(resource.RLIMIT_FSIZE, 4096, command, tmp_path / "general.jsonl", *options)
    assert done.returncode == 4
    assert done.stderr.startswith("datamix: ")
    assert "cannot be written there (File too large)" in done.stderr
    assert not list(tmp_path.glob(".datamix-*"))
    assert not target.exists()


def test_files_are_listed_by_depth_and_name_and_a_folder_that_cannot_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a/1.json", "a/2.txt", "b/3.json", "b/c/4.json", "5.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert files_below(tmp_path, "*/*.json") == [tmp_path / "a/1.json", tmp_path / "b/3.json"]
    assert len(files_below(tmp_path)) == 5
    assert files_below(tmp_path / "none") == []
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("b"):
            raise PermissionError(errno.EPERM, "refused", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        files_below(tmp_path, "*/*.json")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES])
def test_a_recipe_that_the_machine_does_not_give_is_no_mistake_of_the_recipe(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path)

    def fail(self: Path, *_: object, **__: object) -> str:
        raise OSError(number, "no", str(self))

    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(path)])
    assert ended.value.code == 4
    assert f"The machine refused: {os.strerror(number)}" in capsys.readouterr().err


def test_a_tokenizer_that_the_machine_does_not_give_is_no_mistake_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, read_bytes = recipe(tmp_path), Path.read_bytes

    def fail(self: Path) -> bytes:
        if self.name == "tokenizer_config.json":
            raise OSError(errno.EIO, "broken", str(self))
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(path)])
    assert ended.value.code == 4
    assert "Check the disk" in capsys.readouterr().err


def test_a_file_of_numpy_that_is_written_in_part_is_named_with_the_place(tmp_path: Path) -> None:
    with (
        pytest.raises(
            MachineError, match=r"A part of a file .* below .* Free some space there, .*, or move\."
        ),
        failures_at(tmp_path, "working", "move"),
    ):
        raise OSError("10000 requested and 1984 written")
