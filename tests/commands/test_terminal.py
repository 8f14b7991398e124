"""Names of hostile files and fields reach the terminal as signs: nothing in them moves a cursor, sets a title or turns text."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from small import alpaca, datamix, recipe, write_jsonl

OSC, CSI, CR, BIDI, C1, MARK = "\x1b]0;owned\x07", "\x1b[2J", "\r", "\u202e", "\x9b31m", "\u200f"
EVIL = f"a{OSC}{CSI}{CR}{BIDI}{C1}{MARK}\u2067b[red]"
FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # of our own, in inspect and verify


def is_harmless(text: str) -> bool:
    return not FORBIDDEN.search(COLOURS.sub("", text))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe and records in files and fields of hostile names."""
    recipe(tmp_path)
    rows = [{"instruction": f"q {i} {EVIL}", "output": f"answer {i} {EVIL}", EVIL: i} for i in range(60)]
    write_jsonl(tmp_path / f"{EVIL}.jsonl", [*rows, rows[0], {EVIL: EVIL}, {"output": 5, EVIL: None}])
    return tmp_path


def check(folder: Path, *arguments: str | Path, code: int | None = None, says: str = "") -> None:
    done = datamix(*arguments)
    assert is_harmless(done.stdout), done.stdout
    assert is_harmless(done.stderr), done.stderr
    assert code is None or done.returncode == code, done.stderr
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_commands_on_files_show_hostile_names_as_signs(folder: Path) -> None:
    file = folder / f"{EVIL}.jsonl"
    check(folder, "check", file, code=1, says="[red].jsonl")
    check(folder, "inspect", file, code=0)
    check(folder, "inspect", file, "--row", "61")
    check(folder, "inspect", file, "--stats")
    check(folder, "convert", file, folder / f"{EVIL}-messages.jsonl", "--to", "messages")
    check(folder, "convert", file, folder / f"{EVIL}.none", "--to", "messages")
    check(folder, "dedupe", file, "-o", folder / f"{EVIL}-deduped.jsonl", code=0, says="[red]")
    check(folder, "dedupe", file, "-o", folder / "x.jsonl", "--column", EVIL + "?", code=2)
    check(folder, "init", file, "-o", folder / f"{EVIL}.yaml")
    check(folder, "init", folder / f"{EVIL}.txt", code=2)
    check(folder, "inspect", folder / f"nothing-{EVIL}", code=2)
    check(folder, "check", folder / f"nothing-{EVIL}", code=2)
    check(folder, "build", folder / f"nothing-{EVIL}.yaml", code=2)
    check(folder, "plan", folder / "recipe.yaml", f"--{EVIL}", code=2)
    check(folder, EVIL, code=2)


def test_commands_on_recipes_and_sets_show_hostile_names_as_signs(folder: Path) -> None:
    value = json.loads((folder / "recipe.yaml").read_text())
    value["sources"]["general"] |= {"path": f"{EVIL}.jsonl", "keep_meta": [EVIL]}
    path = folder / f"{EVIL}.yaml"
    path.write_text(json.dumps(value | {"max_reject_share": 0.5, "cut_" + EVIL: 1}), encoding="utf-8")
    check(folder, "plan", path, code=2)
    path.write_text(json.dumps(value | {"max_reject_share": 0.5}), encoding="utf-8")
    out = folder / f"{EVIL}-set"
    check(folder, "plan", path)
    check(folder, "build", path, "-o", out, code=0, says="[red]-set")
    for more in (("--row", "0"), ("--stats",), ("--removed",)):
        check(folder, "inspect", out, *more)
    check(folder, "verify", out, "--inputs", "1")
    check(folder, "export", out, "--to", "openai")
    (folder / f"{EVIL}.jsonl").unlink()
    check(folder, "verify", out, "--inputs", "1", code=1)
    check(folder, "build", path, "-o", out, code=2)
    write_jsonl(folder / f"{EVIL}.jsonl", [{EVIL: 1}] * 9)
    check(folder, "build", path, "-o", out, "--overwrite")
    write_jsonl(folder / f"{EVIL}.jsonl", alpaca(["q"], 9))
    check(folder, "build", path, "-o", out)


def test_a_line_feed_in_a_file_name_begins_no_line(folder: Path) -> None:
    forged = f"x\ndatamix: everything is fine\n{EVIL}.jsonl"
    file = folder / forged
    (folder / f"{EVIL}.jsonl").rename(file)
    value = json.loads((folder / "recipe.yaml").read_text())
    value["sources"]["general"]["path"] = "x*.jsonl"
    (folder / "recipe.yaml").write_text(json.dumps(value | {"max_reject_share": 0.001}))
    arguments: list[list[str | Path]] = [
        ["check", file],
        ["convert", file, folder / "y.jsonl", "--to", "messages"],
        ["dedupe", file, "-o", folder / "d.jsonl"],
        ["build", folder / "recipe.yaml", "-o", folder / "out"],
        ["build", folder / "recipe.yaml", "-o", folder / "out", "--set", "max_reject_share=1"],
        ["verify", folder / "out", "--inputs"],
        ["inspect", folder / "out", "--row", "1"],
    ]
    for words in arguments:
        done = datamix(*words)
        assert is_harmless(done.stdout + done.stderr), words
        assert "\ndatamix: everything" not in done.stdout + done.stderr, words
    (folder / "out" / "train" / forged).write_text("x")
    done = datamix("verify", folder / "out")
    assert "\ndatamix: everything" not in done.stdout
    assert done.returncode == 1


def test_a_file_name_that_is_not_unicode_is_shown(folder: Path) -> None:
    name = folder / "a\udcff.jsonl"
    write_jsonl(name, [{"x": 1}])
    check(folder, "check", name, code=1)
    check(folder, "inspect", name)
