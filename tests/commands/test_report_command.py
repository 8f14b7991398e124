"""``datamix report``: the page again, in either language, listed by the manifest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small
from click.testing import CliRunner

import datamix
from datamix.commands.cli import cli
from datamix.core.errors import RecipeError
from datamix.jobs.build import build
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe


@pytest.fixture
def built(tmp_path: Path) -> Path:
    build(Recipe.read(small.recipe(tmp_path)), Options(tmp_path / "out", tmp_path / ".datamix", 1))
    return tmp_path / "out"


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["report", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_page_is_written_in_chinese_and_in_english_again(built: Path) -> None:
    page, manifest = built / "report.html", json.loads((built / "manifest.json").read_bytes())
    before = page.read_bytes()
    assert run(str(built), "--language", "zh").split() == [str(page)]
    assert '<html lang="zh">' in page.read_text(encoding="utf-8")
    assert all(check.ok for check in datamix.verify(built))
    run(str(built))
    assert page.read_bytes() == before
    assert json.loads((built / "manifest.json").read_bytes()) == manifest
    assert not (built / ".building").exists()


def test_a_page_that_somebody_changed_is_set_aside(built: Path) -> None:
    (built / "report.html").write_text("mine", encoding="utf-8")
    assert "it is now" in run(str(built))
    assert (built / "report.html.yours").read_text(encoding="utf-8") == "mine"
    assert all(check.ok for check in datamix.verify(built))


def test_a_build_after_a_page_in_chinese_finds_the_set_whole(built: Path, tmp_path: Path) -> None:
    datamix.report(built, language="zh")
    manifest = build(Recipe.read(tmp_path / "recipe.yaml"), Options(built, tmp_path / ".datamix", 1))
    assert manifest == json.loads((built / "manifest.json").read_bytes())
    assert '<html lang="zh">' in (built / "report.html").read_text(encoding="utf-8")


def test_a_folder_without_a_set_and_another_language_are_refused(built: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="holds no finished set"):
        datamix.report(tmp_path)
    with pytest.raises(RecipeError, match="no language 'fr'"):
        datamix.report(built, language="fr")
    assert not (built / ".building").exists()


def test_a_virtual_set_has_its_page_too(tmp_path: Path) -> None:
    out = tmp_path / "virtual"
    build(Recipe.read(small.recipe(tmp_path, write=[])), Options(out, tmp_path / ".datamix", 1))
    assert datamix.report(out, "zh") == out / "report.html"
    assert all(check.ok for check in datamix.verify(out))
