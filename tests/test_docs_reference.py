"""The reference pages are what the code gives, they leave nothing out, and the site builds without a warning."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import get_args

import click
import pytest
import yaml
from pydantic import TypeAdapter

from datamix.clean import STEPS
from datamix.commands.cli import cli
from datamix.core import errors
from datamix.core.records import Kind
from datamix.exporters import catalog
from datamix.recipe import Recipe, excluded, mixture, parts

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
CODE = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
CALLS_WITH_A_REASON = ("Reject", "_refused", "Unfit")
NOT_FOUND_BY_SHAPE = {"encoding", "truncated_line"}  # given as keyword arguments
STOPS_THE_BUILD = {"unclosed"}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_pages_are_those_that_the_code_gives(script: ModuleType) -> None:
    for name, text in script.pages().items():
        assert (REFERENCE / name).read_text(encoding="utf-8") == text, f"{name}: run `make schemas`"


def test_every_recipe_key_has_a_description_in_both_languages_and_an_example_of_its_type(
    script: ModuleType,
) -> None:
    for path, prop, _, owner in script.recipe_keys():
        entry = script.words()["recipe"].get(path)
        assert entry is not None, f"docs/reference.yaml: add {path}"
        english, chinese, example = entry
        assert prop.get("description") or english, path
        assert chinese, path
        model = (
            Recipe
            if owner == "Recipe"
            else next(vars(m)[owner] for m in (parts, mixture, excluded) if owner in vars(m))
        )
        key = path.rpartition(".")[2]
        field = next(f for name, f in model.model_fields.items() if key in (name, f.alias))
        TypeAdapter(field.rebuild_annotation()).validate_python(yaml.safe_load(example))


def test_no_description_is_left_of_a_key_that_went_away(script: ModuleType) -> None:
    known = {path for path, *_ in script.recipe_keys()} | {"clean[].fields", "clean[].sources"}
    assert {path for path in script.words()["recipe"] if path not in known} == set()


def test_every_command_and_option_is_described_in_both_languages(script: ModuleType) -> None:
    for name, command in cli.commands.items():
        assert script.words()["commands"].get(name, ["", ""])[1], (
            f"docs/reference.yaml: add the command {name}"
        )
        for option in command.params:
            if isinstance(option, click.Option):
                keys = [f"{name} {max(option.opts, key=len)}", max(option.opts, key=len)]
                entry = next(
                    (script.words()["options"][key] for key in keys if key in script.words()["options"]),
                    ["", ""],
                )
                assert entry[1], f"docs/reference.yaml: add the option {keys[0]}"
                assert option.help or entry[0], keys[0]


def reject_reasons() -> Iterator[str]:
    """Codes that reading and shaping give: the first code in a call with a reason, or in a pair of a code and a sentence."""
    for room in ("read", "formats"):
        for path in (ROOT / "datamix" / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Tuple) and len(node.elts) == 2 and is_sentence(node.elts[1]):
                    yield from codes(node.elts[:1])
                elif (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Name)
                    and node.func.id in CALLS_WITH_A_REASON
                ):
                    yield from list(codes(node.args))[:1]


def codes(nodes: list[ast.expr]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE.fullmatch(node.value):
            yield node.value


def is_sentence(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and " " in str(node.value))


def clean_reasons() -> Iterator[str]:
    """Names of checks that cleaning gives as a reason: what its functions return, and the options of steps whose checks are options."""
    for path in (ROOT / "datamix" / "clean").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Return | ast.Yield) and node.value is not None:
                yield from codes([node.value])
    for step in ("sft_checks", "gopher_repetition"):
        yield from (field.name for field in dataclasses.fields(STEPS[step]))


def listed(page: Path) -> set[str]:
    """The codes on a page, ranges such as ``a_2gram`` to ``a_4gram`` filled in."""
    text = page.read_text(encoding="utf-8")
    found = set(re.findall(r"`([a-z][a-z0-9_]*)`", text))
    for stem, first, last in re.findall(r"`([a-z_]+_)(\d+)gram` (?:to|至) `[a-z_]+_(\d+)gram`", text):
        found |= {f"{stem}{n}gram" for n in range(int(first), int(last) + 1)}
    return found


@pytest.mark.parametrize("page", ["reasons.md", "reasons.zh.md"])
def test_every_reason_code_is_explained(page: str) -> None:
    rejects, checks, explained = set(reject_reasons()), set(clean_reasons()), listed(REFERENCE / page)
    assert len(rejects) > 25
    assert len(checks) > 25
    assert (rejects - STOPS_THE_BUILD | NOT_FOUND_BY_SHAPE) - explained == set()
    assert [
        check for check in sorted(checks) if not any(code.endswith(f"_{check}") for code in explained)
    ] == []


@pytest.mark.parametrize("page", ["reasons.md", "reasons.zh.md"])
def test_every_explained_reason_occurs_in_the_code(page: str) -> None:
    source = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "datamix").rglob("*.py"))
    table = re.findall(
        r"^\| (?:removed|dropped|unused) \| `(\w+)` \|", (REFERENCE / page).read_text(encoding="utf-8"), re.M
    )
    assert len(table) == 13
    assert [reason for reason in table if f'"{reason}"' not in source] == []


@pytest.mark.parametrize("page", ["exit-codes.md", "exit-codes.zh.md"])
def test_every_exit_code_is_explained(page: str) -> None:
    explained = {
        int(code)
        for code in re.findall(r"^\| (\d+) \|", (REFERENCE / page).read_text(encoding="utf-8"), re.M)
    }
    raised = {
        value.exit_code
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.DatamixError)
    }
    assert raised | {0, 1} <= explained


def test_the_site_builds_without_a_warning_in_both_languages(tmp_path: Path) -> None:
    for name in ("mkdocs", "mkdocs_static_i18n"):
        pytest.importorskip(name, reason=f"{name} is not installed; requirements-dev.lock has it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    pages = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.html")} - {"404.html"}
    english = {page for page in pages if not page.startswith("zh/")}
    assert {f"zh/{page}" for page in english} == pages - english
    assert len(english) == len([p for p in (ROOT / "docs").rglob("*.md") if not p.name.endswith(".zh.md")])
    assert (
        not [  # nothing is loaded from elsewhere
            page
            for page in pages
            if re.search(r'src="https?://|<link[^>]*stylesheet[^>]*"https?://', (tmp_path / page).read_text())
        ]
    )
    assert "&lt;|im_end|&gt;" in (tmp_path / "encoding.html").read_text(
        encoding="utf-8"
    )  # no backslash in a table
    assert "Not run by the tests: it trains a model." in (tmp_path / "start.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "search" / "search_index.json").read_text(encoding="utf-8"))["docs"]


@pytest.mark.parametrize("page", ["exports.md", "exports.zh.md"])
def test_the_table_of_formats_names_the_kinds_that_each_format_holds(page: str) -> None:
    words = {
        "all": set(get_args(Kind)),
        "全部": set(get_args(Kind)),
        "pairs": {"preference"},
        "成对偏好": {"preference"},
    }
    rows = re.findall(
        r"^\| `([\w-]+)`[^|]*\| ([^|]*) \|", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.MULTILINE
    )
    table = {
        name: cell for name, cell in reversed(rows) if name in catalog.EXPORT_FORMATS
    }  # the first of each
    assert set(table) == set(catalog.EXPORT_FORMATS)
    for name, cell in table.items():
        names = re.split(r", |、", re.sub(r" ?[(（].*?[)）]", "", cell))
        assert set().union(*(words.get(word, {word}) for word in names)) == set(catalog._load(name).KINDS), (
            name
        )


@pytest.mark.parametrize("page", ["reasons.md", "reasons.zh.md"])
def test_every_reason_that_encoding_gives_or_counts_is_explained(page: str) -> None:
    source = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "datamix" / "tokenize").rglob("*.py"))
    given = set(
        re.findall(
            r'reasons\[\w+\] = "(\w+)"|counts\["(\w+)"\]|return "(template)"|"(overlong|no_loss)"', source
        )
    )
    reasons = {reason for groups in given for reason in groups if reason}
    assert len(reasons) >= 5
    assert reasons - listed(REFERENCE / page) == set()
