"""``datamix sweep``."""

from __future__ import annotations

from pathlib import Path

import click

from datamix.commands.options import CACHE, OVERRIDES, PATH, WORKERS, complete_source, echo


@click.command()
@click.argument("recipe", type=PATH)
@click.option(
    "--vary",
    required=True,
    metavar="NAME=SHARES",
    shell_complete=complete_source,
    help="A source or group and its shares: general=0,0.05,0.25.",
)
@click.option(
    "-o", "--output", type=PATH, help="Folders are OUT-NAME-SHARE; default OUT: ./NAME of the recipe."
)
@click.option(
    "--scale", type=float, default=1.0, show_default=True, help="Shrink every source and the size alike."
)
@CACHE
@WORKERS
@OVERRIDES
@click.option("--overwrite", is_flag=True, help="Replace finished sets that another recipe built.")
def sweep(
    recipe: Path, vary: str, output: Path | None, scale: float, cache: Path | None, workers: int | None,
    overrides: tuple[str, ...], overwrite: bool,
) -> None:  # fmt: skip
    """Build a ladder of mixtures from one preparation; each is a virtual set, a schedule of a few bytes a row."""
    from datamix.jobs.build import sweep as run_sweep
    from datamix.pipeline.built_sets import default_cache
    from datamix.pipeline.progress import Screen
    from datamix.pipeline.steps import Options
    from datamix.recipe import Recipe
    from datamix.reporting.summaries import ladder_table

    read = Recipe.read(recipe, overrides)
    out = output or Path(read.name)
    options = Options(out, cache or default_cache(out), workers or 0, overwrite=overwrite)
    echo(ladder_table(run_sweep(read, vary, options, scale, Screen()), scale))
