"""The report: verdicts that say what the manifest says, one offline page, the same bytes every time."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import handmade
import pytest
import small

from datamix.core.errors import RecipeError
from datamix.jobs.build import build
from datamix.pipeline.progress import short_bytes
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe
from datamix.reporting import render_report, words
from datamix.reporting.decode import read_manifest
from datamix.reporting.verdicts import verdicts

KINDS = [("pretrain", "concat"), ("pretrain", "best_fit"), ("sft", "none"), ("sft", "best_fit"), ("preference", "none"), ("prompt", "none")]  # fmt: skip


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return handmade.build(tmp_path_factory.mktemp("packed") / "out", "sft", "best_fit")


class _Page(HTMLParser):
    """Collects what a test asks about, and finds tags that are not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("href", "src", "xlink:href", "action", "data"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"


@pytest.mark.parametrize(("kind", "pack"), KINDS)
def test_the_page_of_every_kind_stands_alone(tmp_path: Path, kind: str, pack: str) -> None:
    page = render_report(handmade.build(tmp_path / "out", kind, pack))
    parsed = _Page(page)
    assert parsed.open == []
    assert all(link.startswith("#") for link in parsed.links)
    assert "script" not in parsed.tags
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {link[1:] for link in parsed.links} <= set(parsed.ids)
    assert {"shares", "funnel", "reasons", "duplicates", "order", "lengths", "rows", "origin"} <= set(
        parsed.ids
    )
    assert str(tmp_path) not in page


def test_the_page_opens_with_verdicts_in_sentences(packed: Path) -> None:
    manifest = read_manifest(packed)
    first, second, *_ = verdicts(manifest)
    medical = manifest["sources"]["medical"]["share"]
    assert first.sentence.startswith("general asked 70.0 %, reached ")
    assert (
        f"medical asked 30.0 %, reached {medical['loss_tokens'] * 100:.2f} % of loss tokens" in first.sentence
    )
    assert re.search(r"no prefix strayed more than \d+ of at most 33 loss tokens\.$", first.sentence)
    assert (
        second.sentence
        == "Of 130 records read, 75 are in train/; each of the other 55 is accounted for, 3 of them in validation/."
    )
    page = render_report(packed)
    assert page.index(first.sentence) < page.index(second.sentence) < page.index("<h2>")


def _manifest(packed: Path, **changes: Any) -> dict[str, Any]:
    manifest = json.loads(json.dumps(read_manifest(packed)))
    for keys, value in changes.items():
        *parents, last = keys.split("__")
        here = manifest
        for key in parents:
            here = here[key]
        here[last] = value
    return manifest


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mixture__max_prefix_deviation": 40.0}, r"a prefix strayed 40, beyond 33 loss tokens\."),
        (
            {"sources__medical__records__used": 5},
            r"14 records cannot be accounted for: the ledger does not balance\.",
        ),
        (
            {"sources__medical__epochs": 2.5},
            r"medical is repeated: each of its records is used 2\.50 times on average\.",
        ),
        (
            {"mixture__binding": "general"},
            r"not needed: medical 33 \(63\.5 %\)\. general ran out first and sets the size\.",
        ),
        ({"sources__general__truncated": 3}, r"^3 records longer than max_length lost tokens; "),
        ({"packing__cut_records": 2}, r"2 records split between rows\."),
    ],
)
def test_what_a_person_should_look_at_is_said(packed: Path, changes: dict[str, Any], told: str) -> None:
    found = [v for v in verdicts(_manifest(packed, **changes)) if re.search(told, v.sentence)]
    assert [v.tone for v in found] == ["look"]


def test_only_sources_that_hold_reasoning_are_named_for_it(packed: Path) -> None:
    sentences = [v.sentence for v in verdicts(_manifest(packed, sources__medical__noticed={"thinking": 1}))]
    (found,) = [sentence for sentence in sentences if sentence.startswith("Records with reasoning")]
    assert "medical" in found
    assert "general" not in found


def test_sources_of_a_group_are_judged_together(packed: Path) -> None:
    manifest = _manifest(packed)
    for source in manifest["recipe"]["sources"].values():
        source["group"] = "everything"
    assert verdicts(manifest)[0].sentence.startswith(
        "everything asked 100.0 %, reached 100.00 % of loss tokens"
    )


def test_the_same_set_gives_the_same_bytes_in_another_process(packed: Path) -> None:
    code = "import sys; from pathlib import Path; from datamix.reporting import render_report; sys.stdout.buffer.write(render_report(Path(sys.argv[1])).encode())"
    root = str(Path(__file__).resolve().parents[1])
    other = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONPATH": root}
    made = subprocess.run(
        [sys.executable, "-c", code, str(packed)], capture_output=True, check=True, env=other
    )
    assert made.stdout.decode() == render_report(packed)


def _contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours like #1f6f78, by WCAG 2.2."""

    def luminance(colour: str) -> float:
        parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_and_marks_stand_out_in_light_and_dark(packed: Path, scheme: int) -> None:
    page = render_report(packed)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", page.split(":root {")[scheme + 1].split("}")[0]))
    for name in ("ink", "soft", "accent"):
        assert min(_contrast(colours[name], colours[back]) for back in ("page", "card")) >= 4.5, name
    assert _contrast(colours["mark-ink"], colours["mark"]) >= 4.5
    assert min(_contrast(colours["page"], colours[tone]) for tone in ("good", "look")) >= 4.5
    for number in range(1, 10):
        assert _contrast(colours[f"s{number}"], colours["page"]) >= 3, number


def test_every_drawing_has_a_title_and_named_axes(packed: Path) -> None:
    page = render_report(packed)
    figures = re.findall(r"<figure.*?</figure>", page, re.DOTALL)
    assert len(figures) == 7
    for figure in figures:
        assert re.search(r"<figcaption>[^<]+</figcaption>", figure)
        if 'class="plot"' in figure:
            assert re.findall(r'<p class="axis(?: below)?">[^<]+</p>', figure)[1]
            assert re.search(r'aria-label="[^"]+"', figure)
        else:
            assert re.search(r'class="bar head"><span></span><span>[^<]+</span>', figure)


def test_rows_are_escaped_and_their_trained_tokens_marked(packed: Path) -> None:
    page = render_report(packed)
    rows = page[page.index('id="rows"') :]
    assert "Name three rivers &amp; their seas.&lt;|im_end|&gt;" in rows
    assert "<|im_end|>" not in page
    assert "<mark>The Nile, the Rhine and the Po." in rows
    assert "长城是古代的防御工程。&lt;|im_end|&gt;</mark>" in rows


def test_counts_of_the_manifest_stand_in_the_tables(packed: Path) -> None:
    manifest, page = read_manifest(packed), render_report(packed)
    cells = _cells(page)
    for source in manifest["sources"].values():
        for number in (*source["records"].values(), *source["emitted"].values()):
            assert f"{number:,}" in cells
        for share in source["share"].values():
            assert f"{share * 100:.2f} %" in cells
    assert {"rejected", "json_syntax"} <= set(cells)


def _cells(page: str) -> list[str]:
    return re.findall(r'<t[dh](?: class="n")?>(.*?)</t[dh]>', page)


def test_reasons_come_by_count_with_the_words_of_the_manifest(packed: Path) -> None:
    manifest = _manifest(packed, sources__general__rejected_by={"json_syntax": 1, "not_text": 40})
    page = render_report(packed, manifest)
    table = page[page.index('id="reasons"') : page.index('id="duplicates"')]
    rows = [_cells(row) for row in re.findall(r"<tr>.*?</tr>", table)][1:]
    counts = [int(row[2]) for row in rows]
    assert rows[0] == ["rejected", "not_text", "40", "general 40"]
    assert counts == sorted(counts, reverse=True)
    assert ["removed", "near", "3", "general 2, medical 1"] in rows


def test_a_group_has_its_row_before_its_sources(packed: Path) -> None:
    manifest = _manifest(packed)
    for source in manifest["recipe"]["sources"].values():
        source["group"] = "everything"
    page = render_report(packed, manifest)
    shares = page[page.index('id="shares"') : page.index('id="funnel"')]
    names = re.findall(r'<div class="bar d(\d)"><span class="name">(.*?)</span>', shares)
    assert names == [("0", "everything"), ("1", "general"), ("1", "medical")]
    assert ["everything", "100.00 %", "100.00 %", "100.00 %", "100.00 %", "30", "75", "2,544", "966"] in [
        _cells(row)[:9] for row in re.findall(r"<tr.*?</tr>", shares)
    ]
    funnel = page[page.index('id="funnel"') : page.index('id="reasons"')]
    assert [name for _, name in re.findall(r'bar d(\d)"><span class="name">(.*?)</span>', funnel)] == [
        "everything",
        "general",
        "medical",
    ]


def test_the_asked_unit_comes_first(packed: Path) -> None:
    page = render_report(packed)
    assert re.findall(r"<dt>(.*?)</dt>", page)[:2] == ["kind", "loss tokens (asked)"]
    head = re.search(r'class="bar head"><span></span>(.*?)</div>', page)
    assert head is not None
    assert re.findall(r"<span>(.*?)</span>", head[1]) == ["loss tokens (asked)", "records", "tokens"]


def test_size_digest_and_commands_are_on_the_page(packed: Path) -> None:
    manifest = _manifest(packed)
    manifest["commands"] = {"llamafactory": "llamafactory-cli train train.yaml"}
    page = render_report(packed, manifest)
    assert f"<dd>{manifest['content_sha256'][:12]}</dd>" in page
    size = sum(e["bytes"] for e in manifest["outputs"] if e["format"] != "report")
    assert f"<dt>size</dt><dd>{short_bytes(size)}</dd>" in page
    assert "<dt>in llamafactory/</dt><dd><code>llamafactory-cli train train.yaml</code></dd>" in page
    assert "<code>datamix verify OUT</code>" in page


def test_example_rows_are_folded_but_the_first(packed: Path) -> None:
    page = render_report(packed)
    rows = re.findall(r'<details class="row"( open)?>', page)
    assert rows[0] == " open"
    assert set(rows[1:]) == {""}


def test_many_sources_fold_their_tables_and_stages_are_numbered(packed: Path) -> None:
    manifest = _manifest(packed)
    for n in range(20):
        manifest["sources"][f"more-{n}"] = json.loads(json.dumps(manifest["sources"]["medical"]))
    page = render_report(packed, manifest)
    assert page.count("<summary>Table of 22 rows</summary>") == 2
    stage = manifest["mixture"]["stages"][0]
    manifest["mixture"]["stages"] = [
        {**stage, "name": f"s{n}", "size": stage["size"] / 5, "rows": 6} for n in range(5)
    ]
    page = render_report(packed, manifest)
    order = page[page.index('id="order"') : page.index('id="lengths"')]
    assert re.findall(r"<small>(\d)</small>", order) == list("12345")
    assert re.findall(r"<td>(\d s\d)</td>", order) == [f"{n + 1} s{n}" for n in range(5)]


@pytest.mark.parametrize(("kind", "pack"), KINDS)
def test_the_page_is_written_in_chinese(tmp_path: Path, kind: str, pack: str) -> None:
    page = render_report(handmade.build(tmp_path / "out", kind, pack), language="zh")
    assert '<html lang="zh">' in page
    assert ", record " not in page
    assert "，记录 " in page
    assert _Page(page).open == []
    for text in ("占比", "从读到的记录到行", "记录为何没有用到", "沿训练顺序", "用它训练", "读到 130 条记录"):
        assert text in page
    assert "{" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)


def test_every_text_of_the_page_has_a_translation_with_the_same_fields() -> None:
    folder = Path(words.__file__).parent
    texts = set(re.findall(r'say\("([^"]+)"', (folder / "page.html").read_text(encoding="utf-8")))
    for module in folder.glob("*.py"):
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "say":
                texts |= {
                    n.value for n in node.args if isinstance(n, ast.Constant) and isinstance(n.value, str)
                }
    sentences = ast.walk(ast.parse((folder / "verdicts.py").read_text(encoding="utf-8")))
    constants = {n.value for n in sentences if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    texts |= {text for text in constants if re.search(r"\{\w+\}", text)}
    table = json.loads((folder / "words.zh.json").read_text(encoding="utf-8"))
    assert len(texts) > 60
    assert texts - table.keys() == set()
    for text, translation in table.items():
        fields = [sorted(re.findall(r"\{(\w+)\}", t)) for t in (text, translation)]
        assert set(fields[1]) <= set(fields[0]), text
        assert set(fields[0]) - set(fields[1]) <= {"unit"}, text


def test_a_language_that_the_page_does_not_have_is_refused(packed: Path) -> None:
    with pytest.raises(RecipeError, match="no language 'fr'; it has en, zh"):
        render_report(packed, language="fr")


def test_many_sources_share_the_last_colour(packed: Path) -> None:
    from datamix.reporting.gather import gather
    from datamix.reporting.sections import _series

    manifest = read_manifest(packed)
    picture = gather(packed, manifest)
    picture.sources = [f"s{i}" for i in range(20)]
    picture.windows = picture.windows[:, :1].repeat(20, axis=1)
    groups, legend = _series(picture, words.Words())
    assert [item.name for item in legend] == [f"s{i}" for i in range(7)] + ["13 others"]
    assert groups.sum() == 20


def test_a_folder_that_is_no_set_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not a finished set"):
        render_report(tmp_path)


def test_a_report_of_costs_that_are_known_is_the_report_of_those_that_are_counted(tmp_path: Path) -> None:
    build(Recipe.read(small.recipe(tmp_path)), Options(tmp_path / "out", tmp_path / "cache"))
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8") == render_report(tmp_path / "out")
