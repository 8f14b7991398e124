"""The pages: English and Chinese have the same structure, the words are the field's, links lead somewhere."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from datamix.core.errors import RecipeError
from datamix.recipe import Recipe
from datamix.recipe.schemas import recipe_schema

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if not p.name.endswith(".zh.md")),
]
ALL = [path for page in PAGES for path in (page, page.with_suffix(".zh.md"))]
GENERATED = {
    f"{name}{end}" for name in ("recipe", "commands", "python") for end in (".md", ".zh.md")
}  # docs/make_reference.py
WRITTEN = [path for path in ALL if path.parent.name != "reference" or path.name not in GENERATED]
BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)(?P<rest>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
# Words for which the field has plainer ones, and Chinese terms of which the other one is used everywhere.
FORBIDDEN = {
    ".md": r"\b(told|said|mend\w*|gone|cures?|nobody's|stands?|stood|lies|wanted|as it stands)\b",
    ".zh.md": r"词元|「|」|『|』|数据源|训练集合|集合[里中]的|去重复|您|喂给",
}


def prose(text: str) -> str:
    """A page without its code blocks and code spans."""
    return re.sub(r"`[^`\n]*`", "", BLOCK.sub("", text))


def structure(path: Path) -> list[tuple[str, int]]:
    """Headings with their level, tables with rows and columns, lists with their items, code blocks with their lines, in order."""
    text = path.read_text(encoding="utf-8")
    parts: list[tuple[str, int]] = []
    for line in BLOCK.sub(lambda m: f"\n@{m['language']} {m['text'].count(chr(10))}\n", text).split("\n"):
        if re.match(r"#+ ", line):
            parts.append(("heading", len(line) - len(line.lstrip("#"))))
        elif line.startswith("|"):
            parts.append(("table row of so many cells", len(re.findall(r"(?<!\\)\|", line)) - 1))
        elif line.startswith("@"):
            language, lines = line[1:].rsplit(" ", 1)
            parts.append((f"code block in {language or 'plain text'} of so many lines", int(lines)))
        elif re.match(r"(-|\d+\.) ", line):
            parts.append(("list item", 1))
        elif re.match(r"(!!!|\?\?\?|===) ", line):
            parts.append((line.split()[0], 1))
    return parts


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_english_and_chinese_have_the_same_headings_tables_lists_and_code_blocks(page: Path) -> None:
    assert structure(page.with_suffix(".zh.md")) == structure(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_code_blocks_are_equal_in_both_languages_up_to_comments(page: Path) -> None:
    def code(path: Path) -> list[str]:
        blocks = [m["text"] for m in BLOCK.finditer(path.read_text(encoding="utf-8"))]
        return [
            "\n".join(re.split(r'\s+# |^# |"""', line)[0] for line in text.split("\n"))
            for text in blocks
            if not re.search("[├└]", text)  # trees of files are described in words
        ]

    assert code(page.with_suffix(".zh.md")) == code(page)


@pytest.mark.parametrize("path", WRITTEN, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_page_uses_the_words_of_the_field(path: Path) -> None:
    words = FORBIDDEN[".zh.md" if path.name.endswith(".zh.md") else ".md"]
    assert re.findall(f".{{0,30}}(?:{words}).{{0,30}}", prose(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "path", [p for p in ALL if p.name.endswith(".zh.md")], ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_a_chinese_page_quotes_with_curly_marks_in_pairs(path: Path) -> None:
    text = prose(path.read_text(encoding="utf-8"))
    marks = re.findall("[“”]", text)
    assert marks[::2] == ["“"] * (len(marks) // 2)
    assert marks[1::2] == ["”"] * (len(marks) // 2)
    assert not re.search(r'[\u4e00-\u9fff]"|"[\u4e00-\u9fff]', text)


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_link_leads_to_a_file_and_a_heading_in_the_same_language(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        other = (path.parent / name).resolve() if name else path
        assert other.exists(), target
        if other.suffix == ".md" and other.with_suffix(".zh.md").exists() and "README" not in other.name:
            assert other.name.endswith(".zh.md") == path.name.endswith(".zh.md"), target
        if anchor:
            assert anchor in {
                slug(h) for h in re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.M)
            }


def slug(heading: str) -> str:
    """The anchor of a heading, as the site makes it."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-")


def test_headings_go_down_one_level_at_a_time() -> None:
    for path in ALL:
        levels = [n for what, n in structure(path) if what == "heading"]
        assert levels[0] == 1, path
        assert all(next_ <= level + 1 for level, next_ in pairwise(levels)), path


def test_the_recipe_keys_named_for_other_tools_exist() -> None:
    text = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
    keys = json.dumps(recipe_schema())
    for section, name in re.findall(r"`(encode|mix)\.(\w+)", text):
        assert f'"{name}"' in keys, f"{section}.{name}"
    for word, hint in re.findall(
        r"^\| `(cutoff_len|sequence_len|val_size|train_on_inputs|interleave_probs)`[^|]*\| ([^|]*)\|",
        text,
        re.M,
    ):
        with pytest.raises(RecipeError) as error:
            Recipe.of({word: 1})
        place = re.findall(r"`(?:encode\.)?(\w+)", hint)[0]
        assert place in str(error.value), (word, hint)


@pytest.mark.parametrize(
    "name", ["ARCHITECTURE.md", "CONTRIBUTING.md", "docs/exports.md", "docs/encoding.md"]
)
def test_every_module_that_a_page_names_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    paths = re.findall(r"`([\w./*-]+/[\w*-]+\.py)`", text)
    assert [path for path in paths if not [*ROOT.glob(path), *(ROOT / "datamix").glob(path)]] == []
