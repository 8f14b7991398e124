"""The page of formats is true: its examples are recognised as what they stand under, in both languages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from datamix.core.contracts import Rows
from datamix.formats import RECORD_FORMATS, ShapeSpec, detect, native_kinds, shape
from datamix.recipe import Recipe

DOCS = Path(__file__).parents[2] / "docs"
READ_AS = {"preference_implicit": "preference"}  # recognised under another name, as the page says


@pytest.mark.parametrize("name", ["formats.md", "formats.zh.md"])
def test_every_format_has_its_section_and_its_example_is_recognised(name: str) -> None:
    page = (DOCS / name).read_text(encoding="utf-8")
    sections = re.findall(r"^### (\w+)\n(.*?)(?=^##)", page, re.MULTILINE | re.DOTALL)
    assert sorted(title for title, _ in sections) == sorted(RECORD_FORMATS)
    for title, body in sections:
        for example in re.findall(r"```json\n(.*?)\n```", body, re.DOTALL):
            row = json.loads(example)
            found = detect([row])
            assert found is not None
            assert found.format == READ_AS.get(title, title)
            spec = ShapeSpec(title, native_kinds(title)[0])
            assert shape(Rows([row], [0], [1], [b""]), 0, spec).rejects == []


@pytest.mark.parametrize("name", ["formats.md", "formats.zh.md"])
def test_every_section_ends_with_three_lines_of_a_recipe_that_read_its_format(name: str) -> None:
    page = (DOCS / name).read_text(encoding="utf-8")
    for title, body in re.findall(r"^### (\w+)\n(.*?)(?=^##)", page, re.MULTILINE | re.DOTALL):
        (lines,) = re.findall(r"```yaml\n(.*?)\n```\n", body, re.DOTALL)
        assert lines.count("\n") == 2
        others = {"name": "mine", "tokenizer": "tokenizer", "encode": {"max_length": 2048}}
        recipe = Recipe.of({**others, **yaml.safe_load(lines)})
        (source,) = recipe.sources.values()
        assert {"pretrain": "text"}.get(recipe.kind, recipe.kind) == native_kinds(title)[0]
        assert source.format == ("auto" if "```json" in body else title)


@pytest.mark.parametrize("name", ["formats.md", "formats.zh.md"])
def test_every_format_stands_in_the_table_with_its_kinds(name: str) -> None:
    page = (DOCS / name).read_text(encoding="utf-8")
    for format in RECORD_FORMATS.values():
        assert f"| {format.name} | {', '.join(format.kinds)} |" in page


def test_every_reason_of_a_reject_is_explained() -> None:
    source = "".join(
        p.read_text(encoding="utf-8") for p in (DOCS.parent / "datamix" / "formats").glob("*.py")
    )
    reasons = set(re.findall(r'Unfit\(\s*"(\w+)"', source)) | set(
        re.findall(r'parsed\([^)]*"(\w+)"\)', source)
    )
    assert len(reasons) > 20
    for name in ("formats.md", "formats.zh.md"):
        page = (DOCS / name).read_text(encoding="utf-8")
        assert {reason for reason in reasons - {"meta"} if not re.search(rf"\b{reason}\b", page)} == set()
