"""Every code block of the pages is run, or is marked with a reason and at least parsed.

``console`` blocks show output: each line must be printed in that order, ``...`` stands for anything. ``<!-- not run: REASON -->`` above a block
keeps it from being run. Blocks of both languages are equal up to comments (``test_docs.py``), so the English ones are run.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import click
import jsonschema_rs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from pydantic import TypeAdapter
from test_docs import BLOCK, PAGES, ROOT

from datamix.commands.cli import cli
from datamix.core.errors import DatamixError
from datamix.recipe import Recipe
from datamix.recipe.schemas import recipe_schema, synth_schema
from datamix.recipe.synth_recipe import SynthRecipe

NOT_RUN = re.compile(r"<!-- not run: .{5,} -->\n$")
EXPECTED_EXIT = re.compile(r"# exit code (\d+)$")
SHELL = ("sh", "console", "")


class CodeBlock(NamedTuple):
    language: str
    title: str  # the file that a recipe is saved as, or nothing
    text: str
    runs: bool


def blocks(page: Path) -> list[CodeBlock]:
    text = page.read_text(encoding="utf-8")
    return [
        CodeBlock(
            match["language"],
            (re.search(r'title="([^"]+)"', match["rest"]) or ["", ""])[1],
            match["text"],
            NOT_RUN.search(text[: match.start()]) is None,
        )
        for match in BLOCK.finditer(text)
    ]


def invoke(command: str) -> tuple[int, str]:
    """A command line's exit code and everything it printed."""
    line = command.split("   #")[0]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(cli, shlex.split(line)[1:], obj={})
    if isinstance(result.exception, DatamixError):
        return result.exception.exit_code, f"{result.output}\ndatamix: {result.exception}"
    assert result.exception is None or isinstance(result.exception, SystemExit), command
    return result.exit_code, result.output


def run_console(text: str) -> None:
    """Commands behind ``$``, and the output that they must print."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *expected = part.rstrip("\n").split("\n")
        code, output = invoke(command)
        match = EXPECTED_EXIT.search(command)
        assert code == (int(match[1]) if match else 0), f"{command}\n{output}"
        lines = [" ".join(line.split()) for line in output.split("\n")]
        for line in expected:
            pattern = ".*".join(re.escape(p) for p in re.split(r"\.\.\.|…", " ".join(line.split())))
            place = next((i for i, printed in enumerate(lines) if re.fullmatch(pattern, printed)), None)
            assert place is not None, f"{command}: does not print {line!r} there:\n{output}"
            lines = lines[place + (line.strip() != "...") :]


def run_shell(text: str) -> None:
    for line in text.split("\n"):
        if line.startswith("datamix "):
            code, output = invoke(line)
            assert code == 0, f"{line}\n{output}"


def parse_shell(text: str) -> None:
    """Commands of datamix have options that exist, those of make targets, everything else is a command line."""
    for line in text.removeprefix("$ ").split("\n"):
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"\w+=\S+", words[0]):
            words = words[1:]
        if words[:1] == ["datamix"] and words[1:2] not in (["--version"], ["|"]):
            command = cli.commands[words[1]]
            command.make_context(
                words[1],
                [w for w in words[2:] if w != "COMMAND"],
                parent=click.Context(cli, obj={}, **cli.context_settings),
            )
        elif words[:1] == ["make"]:
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line


def check_recipe(value: dict[str, Any]) -> None:
    """A whole recipe, or some of its keys, each of the type that it has there."""
    if "synth" in value:
        SynthRecipe.of(value)
        return
    if {"name", "kind", "tokenizer", "sources"} <= set(value):
        Recipe.of(value)
        return
    for key, part in value.items():
        TypeAdapter(Recipe.model_fields[key].rebuild_annotation()).validate_python(part)


def prepare(page: Path, folder: Path) -> None:
    """The folder that a page's commands run in: the samples, and what a page takes for granted."""
    shutil.copytree(ROOT / "samples", folder / "samples")
    if page.name == "dedupe.md":
        pq.write_table(
            pa.table({"text": ["one two three four five six", "one two three four five six"]}),
            folder / "docs.parquet",
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_code_blocks_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks(page):
        if block.title:
            (tmp_path / block.title).write_text(block.text, encoding="utf-8")
        if block.language == "yaml":
            check_recipe(yaml.safe_load(block.text) or {})
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "python":
            code = compile(block.text, page.name, "exec")
            if block.runs:
                exec(code, names)
        elif block.language == "console":
            assert block.runs, "output is shown because it was printed"
            run_console(block.text)
        elif block.language == "sh" and block.runs:
            run_shell(block.text)
        elif block.language in SHELL:
            if not re.search("[├└│]|^  ", block.text):
                parse_shell(block.text)
        else:
            assert block.language == "text", block


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_shell_block_has_only_commands_of_datamix_unless_it_is_not_run(page: Path) -> None:
    for block in blocks(page):
        if block.language == "sh" and block.runs:
            assert all(line.startswith(("datamix ", "#")) or not line for line in block.text.split("\n")), (
                block.text
            )


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_published_schema_accepts_the_recipes_of_a_page(page: Path) -> None:
    schema = jsonschema_rs.validator_for(recipe_schema())
    if not schema.is_valid(yaml.safe_load((ROOT / "samples" / "sft.yaml").read_text(encoding="utf-8"))):
        pytest.skip(
            "the published schema does not accept the short forms of recipes yet, samples/sft.yaml included"
        )
    synth = jsonschema_rs.validator_for(synth_schema())
    for block in blocks(page):
        value = yaml.safe_load(block.text) if block.language == "yaml" else None
        if value and "synth" in value:
            assert [str(error) for error in synth.iter_errors(value)] == []
        if value and {"name", "kind", "tokenizer", "sources"} <= set(value):
            assert [str(error) for error in schema.iter_errors(value)] == []
