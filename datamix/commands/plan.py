"""``datamix plan``."""

from __future__ import annotations

from pathlib import Path

import click

from datamix.commands.options import CACHE, OVERRIDES, PATH, WORKERS, echo


@click.command()
@click.argument("recipe", type=PATH)
@click.option("--exact", is_flag=True, help="Prepare and encode first, so that every number is exact.")
@click.option(
    "--batch", type=click.IntRange(min=1), help="Also show what a global batch of this many rows holds."
)
@click.option("--tree", is_flag=True, help="Groups and sources with their shares, as a tree.")
@click.option(
    "--cluster",
    metavar="NODESxCORES",
    help="Also tasks, time, bytes moved and memory on so many machines, such as 64x16.",
)
@click.option("--json", "as_json", is_flag=True, help="The plan as JSON.")
@click.option("-o", "--output", type=PATH, help="The folder of the set; default: ./NAME.")
@CACHE
@WORKERS
@OVERRIDES
def plan(
    recipe: Path, exact: bool, batch: int | None, tree: bool, cluster: str | None, as_json: bool, output: Path | None, cache: Path | None, workers: int | None,
    overrides: tuple[str, ...],
) -> None:  # fmt: skip
    """Show what a build would do: every recipe error first, then the table of the mixture."""
    from datamix.pipeline.built_sets import default_cache
    from datamix.pipeline.cluster_plan import Cluster
    from datamix.pipeline.planning import make_plan
    from datamix.pipeline.progress import Screen
    from datamix.pipeline.steps import Options
    from datamix.recipe import Recipe
    from datamix.reporting.summaries import cluster_table, plan_table, plan_tree

    machines: Cluster | None = None
    if cluster is not None:
        nodes, cross, cores = cluster.partition("x")
        if not cross or not (nodes.isdigit() and cores.isdigit()) or not int(nodes) * int(cores):
            raise click.UsageError(
                f"--cluster {cluster}: should be machines x processors of each, such as 64x16."
            )
        machines = Cluster(int(nodes), int(cores))
    read = Recipe.read(recipe, overrides)
    out = output or Path(read.name)
    options = Options(out, cache or default_cache(out), workers or 0)
    result = make_plan(read, options, exact, batch, Screen(), machines)
    if as_json:
        import json

        echo(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        echo(plan_tree(result) if tree else plan_table(result))
        if machines is not None:
            echo(f"\n{cluster_table(result['cluster'])}")
