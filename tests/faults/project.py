"""The project that commands are run in: small inputs, and files of the user, which no fault may change by a byte."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

from faults.commands import Command
from small import GENERAL, MEDICAL, TOKENIZER, alpaca, write_jsonl

State = tuple[Any, ...]


def make_project(root: Path) -> None:
    """Inputs, a recipe, and the folder ``mine`` of the user."""
    write_jsonl(root / "raw/general.jsonl", [*alpaca(GENERAL, 40), *alpaca(GENERAL, 3)])
    write_jsonl(root / "raw/medical.jsonl", alpaca(MEDICAL, 25))
    write_jsonl(root / "leave-out.jsonl", [{"source": "general", "file": "raw/general.jsonl", "record": 3}])
    shutil.copytree(TOKENIZER, root / "tokenizer")
    recipe = {
        "name": "small",
        "kind": "sft",
        "tokenizer": "tokenizer",
        "sources": {
            "general": {"path": "raw/general.jsonl", "weight": 0.6},
            "medical": {"path": "raw/medical.jsonl", "weight": 0.4, "max_epochs": 2},
        },
        "dedupe": {"exact": True, "near": {"threshold": 0.8}},
        "validation": {"share": 0.1},
        "encode": {"max_length": 256, "pack": "best_fit"},
    }
    (root / "recipe.yaml").write_text(json.dumps(recipe, ensure_ascii=False), encoding="utf-8")
    (root / "out").mkdir()
    (root / "mine/notes").mkdir(parents=True)
    (root / "mine/notes/a.txt").write_text("my notes\n")
    (root / "mine/copy.txt").write_text("another file\n")


def add_user_files(root: Path, command: Command) -> None:
    """Files, folders, links and hard links of the user around what the command writes and, of a set, inside it."""
    out = root / "out"
    (out / "checkpoints").mkdir()
    (out / "checkpoints/step-1.bin").write_bytes(bytes(range(256)))
    (out / ".datamix-notes").write_text("no draft of ours\n")
    (out / "latest").symlink_to("../mine/notes")
    (out / "nowhere").symlink_to("../mine/gone")
    _link(root / "mine/notes/a.txt", out / "hard.txt")
    if not command.inside:
        return
    home = root / command.inside
    (home / "checkpoints/.building").mkdir(parents=True)
    (home / "checkpoints/.building/x.bin").write_bytes(bytes(100))
    (home / "train/notes.txt").write_text("beside the rows\n")
    (home / "train/raw").symlink_to("../../../raw")
    (home / "report.html.partial-1").write_text("mine\n")
    (home / "latest.txt").symlink_to("../../mine/copy.txt")
    _link(root / "mine/copy.txt", home / "hard.txt")
    for path in sorted(
        home.rglob("*.parquet")
    ):  # a backup by hard links: files of ours are replaced, never written into
        _link(path, root / "mine" / f"backup-{path.parent.name}-{path.name}")


def _link(path: Path, name: Path) -> None:
    try:
        os.link(path, name)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copy(path, name)


def state_of(root: Path, skipped: set[str]) -> dict[str, State]:
    """Kind, mode, inode and content of everything below ``root`` but the ``skipped`` and what is below them."""
    found: dict[str, State] = {}
    for folder, folders, files in os.walk(root):
        here = Path(folder).relative_to(root)
        folders[:] = [name for name in folders if (here / name).as_posix() not in skipped]
        for name in (*folders, *files):
            path = Path(folder, name)
            if (here / name).as_posix() not in skipped:
                found[(here / name).as_posix()] = _state(path)
    return found


def _state(path: Path) -> State:
    status = path.lstat()
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFLNK:
        return kind, os.readlink(path)
    if kind == stat.S_IFDIR:
        return kind, stat.S_IMODE(status.st_mode)
    return kind, stat.S_IMODE(status.st_mode), status.st_ino, _digest(path)


def contents(root: Path, made: tuple[str, ...]) -> dict[str, str]:
    """The digest of every file that a command wrote, by path."""
    found: dict[str, str] = {}
    for name in made:
        top = root / name
        for path in (
            [top]
            if top.is_file()
            else sorted(
                p
                for p in top.rglob("*")
                if p.is_file() and not p.is_symlink() and ".building" not in p.relative_to(top).parts[:1]
            )
        ):
            found[path.relative_to(root).as_posix()] = _digest(path)
    return found


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unfinished(root: Path) -> list[str]:
    """Drafts and locks of ours that no command left to the next may leave."""
    patterns = (
        "out/.datamix-*-*",
        "out/*/.datamix-*-*",
        "out/*/.building",
        "out/.datamix/store/partial/*",
        "out/.datamix/leases/*",
        "out/.datamix/**/*.partial-*",
    )
    return [p.relative_to(root).as_posix() for pattern in patterns for p in root.glob(pattern)]
