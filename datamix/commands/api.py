"""The commands as functions: the same work and the same errors, values instead of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from datamix.audit import verify as recount
from datamix.jobs.build import build as build_set
from datamix.jobs.build import sweep as build_ladder
from datamix.pipeline import planning
from datamix.pipeline.built_sets import default_cache
from datamix.pipeline.exporting import export as export_set
from datamix.pipeline.exporting import parse_format
from datamix.pipeline.progress import Screen, Watch
from datamix.pipeline.steps import Options
from datamix.recipe import Recipe
from datamix.reporting.results import (
    BuiltSet,
    Checks,
    Exported,
    Ladder,
    Plan,
    Recommended,
    Shown,
    Synthesized,
    Traced,
    WrittenRecipe,
)

if TYPE_CHECKING:
    from datamix.recipe.synth_recipe import SynthRecipe
    from datamix.reporting.differences import SetDiff

Progress = Callable[[str, int, int], None]  # (phase, done, total), in the phase's unit of work


def build(
    recipe: Recipe | str | Path, out: str | Path | None = None, *, cache: str | Path | None = None, workers: int = 0,
    overwrite: bool = False, progress: Progress | None = None,
) -> BuiltSet:  # fmt: skip
    """Build a training set and return its manifest; ``out`` defaults to ``./NAME``. Raises DatamixError."""
    read = _recipe(recipe)
    options = _options(read, out, cache, workers, overwrite)
    return BuiltSet(build_set(read, options, _CallbackScreen(progress)), options.out, options.cache)


def plan(
    recipe: Recipe | str | Path, out: str | Path | None = None, *, cache: str | Path | None = None, exact: bool = False,
    progress: Progress | None = None,
) -> Plan:  # fmt: skip
    """What a build would take, as ``datamix plan --json`` prints it. Raises DatamixError."""
    read = _recipe(recipe)
    options = _options(read, out, cache, 0, False)
    return Plan(planning.make_plan(read, options, exact, None, _CallbackScreen(progress)))


def sweep(
    recipe: Recipe | str | Path, vary: str, out: str | Path | None = None, *, cache: str | Path | None = None, workers: int = 0,
    scale: float = 1.0, overwrite: bool = False,
) -> Ladder:  # fmt: skip
    """Build one virtual set for each share of ``vary`` (``"general=0,0.05,0.25"``), by folder. Raises DatamixError."""
    read = _recipe(recipe)
    options = _options(read, out, cache, workers, overwrite)
    sets = build_ladder(read, vary, options, scale)
    return Ladder({path: BuiltSet(manifest, path, options.cache) for path, manifest in sets.items()}, scale)


def propose(
    recipe: Recipe | str | Path, runs: int, out: str | Path | None = None, *, cache: str | Path | None = None, workers: int = 0,
    scale: float = 1.0,
) -> Ladder:  # fmt: skip
    """Build ``runs`` mixtures as virtual sets below ``out`` (``./NAME-runs``) and a ``runs.csv``; the sets by folder. Raises DatamixError."""
    from datamix.jobs.propose import propose as propose_runs

    read = _recipe(recipe)
    options = _options(read, out if out is not None else f"{read.name}-runs", cache, workers, False)
    sets = propose_runs(read, runs, options, scale)
    return Ladder({path: BuiltSet(manifest, path, options.cache) for path, manifest in sets.items()}, scale)


def recommend(
    runs: str | Path, target: str | None = None, *, keep: str | Sequence[str] = (), base: str | None = None, share: str | None = None,
    where: Sequence[str] = (), recipe: Recipe | str | Path | None = None, predict: str | Path | None = None,
    out: str | Path | None = None,
) -> Recommended:  # fmt: skip
    """Weights from runs and their losses with a verdict, as ``datamix recommend --json`` prints it; options as the command's. Raises DatamixError."""
    from datamix.jobs.recommend import Request, answer
    from datamix.reporting.recommendation_table import recommendation_text

    bounds = (keep,) if isinstance(keep, str) else tuple(keep)
    read = None if recipe is None else _recipe(recipe)
    other, folder = (None if path is None else Path(path) for path in (predict, out))
    found = answer(Request(Path(runs), target, bounds, base, share, tuple(where), read, other, folder))
    return Recommended(found.to_json(), recommendation_text(found))


def export(
    out: str | Path, to: str | Sequence[str], *, cache: str | Path | None = None, workers: int = 0,
    progress: Progress | None = None,
) -> Exported:  # fmt: skip
    """Write a finished set in further formats, options as ``name:key=value``; the new files. Raises DatamixError."""
    formats = [parse_format(name) for name in ([to] if isinstance(to, str) else to)]
    cache_folder = Path(cache) if cache is not None else None
    return Exported(export_set(Path(out), formats, cache_folder, workers, _CallbackScreen(progress)))


def init(
    paths: str | Path | Sequence[str | Path], output: str | Path = "recipe.yaml", *, kind: str | None = None,
    tokenizer: str | None = None, overwrite: bool = False,
) -> list[WrittenRecipe]:  # fmt: skip
    """Write a recipe for each kind of record that files or folders hold (or for ``kind`` alone). Raises DatamixError."""
    from datamix.jobs.init import write_recipes

    names = [str(paths)] if isinstance(paths, str | Path) else [str(path) for path in paths]
    written = write_recipes(names, kind, Path(output), overwrite, tokenizer)
    return [
        WrittenRecipe(
            path, recipe.kind, recipe.text, tuple((part.paths[0], part.problem) for part in recipe.unused)
        )
        for path, recipe in written
    ]


def inspect(path: str | Path, row: int | None = None, *, stats: bool = False, removed: bool = False) -> Shown:
    """Records of a file, or rows of a set with their trained tokens coloured; ``stats`` and ``removed`` as the command's."""
    from datamix.reporting.inspection import show

    return Shown(show(Path(path), row, stats, removed))


def diff(out1: str | Path, out2: str | Path) -> SetDiff:
    """What changed from one finished set to another; ``print`` shows it, ``.html()`` is a page. Raises DatamixError."""
    from datamix.reporting.differences import compare

    return compare(Path(out1), Path(out2))


def push(out: str | Path, target: str) -> str:
    """Push a finished set and its card to ``hf://OWNER/NAME``; the address of the commit. Raises DatamixError."""
    from datamix.jobs.push import push as push_set

    return push_set(Path(out), target)


def report(out: str | Path, language: str = "en", losses: str | Path | None = None) -> Path:
    """Write the report page of a finished set again (``en`` or ``zh``, with a ``losses.jsonl``), list it; its path. Raises DatamixError."""
    from datamix.jobs.report import write_report

    return write_report(Path(out), language, Path(losses) if losses is not None else None)


def synth(recipe: SynthRecipe | str | Path, out: str | Path | None = None) -> Synthesized:
    """Have a model write the records of a ``synth`` recipe; every answer is stored, and nothing is bought twice. Raises DatamixError."""
    from datamix.jobs.synth import synthesize
    from datamix.recipe.synth_recipe import SynthRecipe

    read = recipe if isinstance(recipe, SynthRecipe) else SynthRecipe.read(recipe)
    folder = Path(out) if out is not None else Path(read.name)
    return Synthesized(synthesize(read, folder), folder)


def trace(out: str | Path, row: int, split: str = "train", *, cache: str | Path | None = None) -> Traced:
    """A row back to its bytes, as ``datamix trace --json`` prints it; what needs a missing input is None. Raises DatamixError."""
    from datamix.jobs.trace import trace as trace_row

    return Traced(trace_row(Path(out), row, split, Path(cache) if cache is not None else None))


def exclude(
    out: str | Path, by: str | Path | Sequence[Mapping[str, str | int]], *, cache: str | Path | None = None, workers: int = 0,
    progress: Progress | None = None,
) -> Ladder:  # fmt: skip
    """Take records out of a finished set and of every set from the same preparation; the sets by folder. ``by``: a file as the
    command reads it, or its entries. Raises DatamixError.
    """
    from datamix.jobs.exclude import exclude as exclude_from
    from datamix.recipe.excluded import check_entries, read_entries

    entries = read_entries(Path(by)) if isinstance(by, str | Path) else check_entries(by)
    cache_folder = Path(cache) if cache is not None else None
    sets = exclude_from(Path(out), entries, cache_folder, workers, _CallbackScreen(progress))
    root = cache_folder or default_cache(Path(out))
    return Ladder({one.out: BuiltSet(one.manifest, one.out, root) for one in sets})


def verify(out: str | Path, inputs: float | None = None) -> Checks:
    """Recount a finished set from its files: one check a promise; ``inputs``: also derive this share of the rows from the raw files."""
    return Checks(recount(Path(out), inputs))


class _CallbackScreen(Screen):
    """Shows nothing, and reports how far each phase is to a function."""

    def __init__(self, progress: Progress | None) -> None:
        super().__init__(quiet=True)
        self._progress = progress

    @contextmanager
    def phase(self, title: str, total: int) -> Iterator[Watch]:
        with super().phase(title, total) as watch:
            counter = _Counter(title, total, self._progress) if self._progress else watch
            yield counter


class _Counter:
    def __init__(self, title: str, total: int, progress: Progress) -> None:
        self._title, self._total, self._done, self._progress = title, total, 0, progress
        progress(title, 0, total)

    def advance(self, weight: int, label: str) -> None:
        self._done += weight
        self._progress(self._title, self._done, self._total)


def _recipe(recipe: Recipe | str | Path) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else Recipe.read(recipe)


def _options(
    recipe: Recipe, out: str | Path | None, cache: str | Path | None, workers: int, overwrite: bool
) -> Options:
    folder = Path(out) if out is not None else Path(recipe.name)
    cache_folder = Path(cache) if cache is not None else default_cache(folder)
    return Options(folder, cache_folder, workers, overwrite=overwrite)
