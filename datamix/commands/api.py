"""The commands as functions: the same work, values instead of text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamix.audit import Check
from datamix.audit import verify as recount
from datamix.jobs.build import build as build_set
from datamix.pipeline import planning
from datamix.pipeline.built_sets import default_cache
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe

if TYPE_CHECKING:
    from datamix.reporting.differences import SetDiff


def build(
    recipe: Recipe | str | Path, out: str | Path | None = None, *, cache: str | Path | None = None, workers: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Build a training set and return its manifest; ``out`` defaults to ``./NAME``. Raises DatamixError."""
    read = _recipe(recipe)
    return build_set(read, _options(read, out, cache, workers, overwrite))


def plan(
    recipe: Recipe | str | Path,
    out: str | Path | None = None,
    *,
    cache: str | Path | None = None,
    exact: bool = False,
) -> dict[str, Any]:
    """What a build would take, as ``datamix plan --json`` prints it. Raises DatamixError."""
    from datamix.pipeline.progress import Screen

    read = _recipe(recipe)
    return planning.make_plan(read, _options(read, out, cache, 0, False), exact, None, Screen(quiet=True))


def diff(out1: str | Path, out2: str | Path) -> SetDiff:
    """What changed from one finished set to another; ``print`` shows it, ``.html()`` is a page. Raises DatamixError."""
    from datamix.reporting.differences import compare

    return compare(Path(out1), Path(out2))


def push(out: str | Path, target: str) -> str:
    """Push a finished set and its card to ``hf://OWNER/NAME``; the address of the commit. Raises DatamixError."""
    from datamix.jobs.push import push as push_set

    return push_set(Path(out), target)


def report(out: str | Path, language: str = "en") -> Path:
    """Write the report page of a finished set again (``en`` or ``zh``), list it in the manifest; its path. Raises DatamixError."""
    from datamix.jobs.report import write_report

    return write_report(Path(out), language)


def verify(out: str | Path, inputs: float | None = None) -> list[Check]:
    """Recount a finished set from its files: one check a promise; ``inputs``: also derive this share of the rows from the raw files."""
    return recount(Path(out), inputs)


def _recipe(recipe: Recipe | str | Path) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else Recipe.read(recipe)


def _options(
    recipe: Recipe, out: str | Path | None, cache: str | Path | None, workers: int, overwrite: bool
) -> Options:
    folder = Path(out) if out is not None else Path(recipe.name)
    cache_folder = Path(cache) if cache is not None else default_cache(folder)
    return Options(folder, cache_folder, workers, overwrite=overwrite)
