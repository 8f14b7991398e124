"""The report: verdicts that say what the manifest says, one offline page, the same bytes every time."""

from __future__ import annotations

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
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe
from datamix.reporting import render_report
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
        ({"sources__general__truncated": 3}, r"^3 records lost tokens to max_length but stayed\.$"),
        ({"packing__cut_records": 2}, r"2 records had to be cut\."),
    ],
)
def test_what_a_person_should_look_at_is_said(packed: Path, changes: dict[str, Any], told: str) -> None:
    found = [v for v in verdicts(_manifest(packed, **changes)) if re.search(told, v.sentence)]
    assert [v.tone for v in found] == ["look"]


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


def test_drawings_take_their_colours_from_the_page_and_leave_settings_alone(packed: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    page = render_report(packed)
    assert dict(matplotlib.rcParams) == before
    drawings = re.findall(r"<svg .*?</svg>", page, re.DOTALL)
    assert len(drawings) == 7
    for drawing in drawings:
        assert "var(--" in drawing
        assert "DejaVu" not in drawing
        assert not set(re.findall(r"(?:fill|stroke): (#[0-9a-f]{6})", drawing))


def test_rows_are_escaped_and_their_trained_tokens_marked(packed: Path) -> None:
    page = render_report(packed)
    rows = page[page.index('id="rows"') :]
    assert "Name three rivers &amp; their seas.&lt;|im_end|&gt;" in rows
    assert "<|im_end|>" not in page
    assert "<mark>The Nile, the Rhine and the Po." in rows
    assert "长城是古代的防御工程。&lt;|im_end|&gt;</mark>" in rows


def test_counts_of_the_manifest_stand_in_the_tables(packed: Path) -> None:
    manifest, page = read_manifest(packed), render_report(packed)
    cells = re.findall(r'<t[dh](?: class="n")?>(.*?)</t[dh]>', page)
    for source in manifest["sources"].values():
        for number in (*source["records"].values(), *source["emitted"].values()):
            assert f"{number:,}" in cells
        for share in source["share"].values():
            assert f"{share * 100:.2f} %" in cells
    assert "rejected: json syntax" in cells


def test_many_sources_share_the_last_colour(packed: Path) -> None:
    from datamix.reporting.gather import gather
    from datamix.reporting.sections import _series

    manifest = read_manifest(packed)
    picture = gather(packed, manifest)
    picture.sources = [f"s{i}" for i in range(20)]
    picture.windows = picture.windows[:, :1].repeat(20, axis=1)
    groups, legend = _series(picture)
    assert [item.name for item in legend] == [f"s{i}" for i in range(7)] + ["13 others"]
    assert groups.sum() == 20


def test_a_folder_that_is_no_set_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="not a finished set"):
        render_report(tmp_path)


def test_a_report_of_costs_that_are_known_is_the_report_of_those_that_are_counted(tmp_path: Path) -> None:
    build(Recipe.read(small.recipe(tmp_path)), Options(tmp_path / "out", tmp_path / "cache"))
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8") == render_report(tmp_path / "out")
