"""The figures of the documentation are those of the table of measurements."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
SPEC = importlib.util.spec_from_file_location("make_figures", DOCS / "make_figures.py")
assert SPEC is not None
assert SPEC.loader is not None
make_figures = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_figures)
TABLE = json.loads(make_figures.RESULTS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", make_figures.pages(), ids=lambda page: page.name)
def test_a_page_has_the_figures_of_the_table(page: Path) -> None:
    assert make_figures.written(page, TABLE) == page.read_text(encoding="utf-8"), (
        "stale figures: run `python docs/make_figures.py` after `make bench`"
    )


def test_both_languages_show_the_same_benchmarks() -> None:
    names = {
        page.name: make_figures.BLOCK.findall(page.read_text(encoding="utf-8"))
        for page in make_figures.pages()
    }
    shown = {name: [block[1] for block in blocks] for name, blocks in names.items()}
    assert shown
    for name, blocks in shown.items():
        other = name.replace(".zh.md", ".md") if name.endswith(".zh.md") else name.replace(".md", ".zh.md")
        assert shown[other] == blocks


def test_other_measurements_give_other_figures() -> None:
    page = make_figures.pages()[0]
    changed = json.loads(json.dumps(TABLE))
    for measured in changed.values():
        for row in measured.get("rows", []):
            row["processor"] = row["processor"] + 10
    assert make_figures.written(page, changed) != page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TABLE)
def test_every_measurement_says_when_on_what_and_with_which_versions(name: str) -> None:
    measured = TABLE[name]
    assert measured["rounds"] >= 3
    assert {"date", "machine", "versions", "peers"} <= measured.keys()
    assert measured.get("rows") or measured.get("printed") or measured.get("skipped")
