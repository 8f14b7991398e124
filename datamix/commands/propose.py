"""``datamix propose``."""

from __future__ import annotations

from pathlib import Path

import click

from datamix.commands.options import CACHE, OVERRIDES, PATH, WORKERS, echo


@click.command()
@click.argument("recipe", type=PATH)
@click.option(
    "--runs",
    "num_runs",
    type=int,
    required=True,
    metavar="N",
    help="How many mixtures, the recipe's own included.",
)
@click.option("-o", "--output", type=PATH, help="The folder to write; default: ./NAME-runs.")
@click.option(
    "--scale",
    type=float,
    default=1.0,
    show_default=True,
    help="Shrink every source and the size alike, for small proxies.",
)
@CACHE
@WORKERS
@OVERRIDES
def propose(
    recipe: Path, num_runs: int, output: Path | None, scale: float, cache: Path | None, workers: int | None,
    overrides: tuple[str, ...],
) -> None:  # fmt: skip
    """Propose mixtures to train, as virtual sets from one preparation, and a table of runs to fill."""
    from datamix.jobs.propose import propose as run_propose
    from datamix.pipeline.built_sets import default_cache
    from datamix.pipeline.progress import Screen
    from datamix.pipeline.steps import Options
    from datamix.recipe import Recipe
    from datamix.reporting.summaries import ladder_table

    read = Recipe.read(recipe, overrides)
    out = output or Path(f"{read.name}-runs")
    options = Options(out, cache or default_cache(out), workers or 0)
    echo(ladder_table(run_propose(read, num_runs, options, scale, Screen()), scale))
    echo(
        f"\n{out / 'README.md'} says how to train each and how losses come back; then: datamix recommend {out}"
    )
