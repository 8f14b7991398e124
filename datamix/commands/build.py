"""``datamix build``."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import click

from datamix.commands.options import CACHE, OVERRIDES, PATH, WORKERS, echo


@click.command()
@click.argument("recipe", type=PATH)
@click.option("-o", "--output", type=PATH, help="The folder to write; default: ./NAME.")
@CACHE
@WORKERS
@click.option(
    "--engine",
    type=click.Choice(["local", "ray", "workers"]),
    default="local",
    show_default=True,
    help="Where tasks run: in processes here, on a Ray cluster, or in `datamix worker` processes that share the cache.",
)
@click.option(
    "--address",
    metavar="local|HOST:PORT",
    help="With --engine ray: the head node of a Ray cluster; `local` starts one of its own on this machine.",
)
@click.option(
    "--sample", type=click.IntRange(min=1), help="Read at most N records of each file, for a trial build."
)
@OVERRIDES
@click.option("--overwrite", is_flag=True, help="Replace a finished set that another recipe built.")
@click.option("--quiet", is_flag=True, help="Show no progress and no messages; errors are shown.")
@click.option("--log", type=PATH, help="Also write phases and messages to this file, as JSON lines.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest instead of the tables.")
def build(
    recipe: Path, output: Path | None, cache: Path | None, workers: int | None, engine: str,
    address: str | None, sample: int | None, overrides: tuple[str, ...], overwrite: bool, quiet: bool, log: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Build the training set of a recipe. Safe to rerun: an interrupted build resumes."""
    from datamix.jobs.build import build as run_build
    from datamix.pipeline.built_sets import default_cache
    from datamix.pipeline.progress import LoggedScreen, Screen, encode_warnings, open_log
    from datamix.pipeline.steps import Options
    from datamix.recipe import Recipe
    from datamix.reporting.summaries import closing

    if (engine == "ray") != (address is not None):
        raise click.UsageError(
            "--engine ray and --address (local, or the host:port of a Ray cluster) go together."
        )
    if workers is not None and engine != "local" and address != "local":
        raise click.UsageError(
            f"--workers is for this machine: with --engine {engine} there are as many as you start."
        )
    read = Recipe.read(recipe, overrides)
    out = output or Path(read.name)
    options = Options(
        out, cache or default_cache(out), workers or 0, sample, overwrite, engine, address=address
    )
    with contextlib.ExitStack() as files:
        screen = Screen(quiet=quiet)
        if log is not None:
            screen = LoggedScreen(files.enter_context(open_log(log)), quiet)
        manifest = run_build(read, options, screen)
    if as_json:
        click.echo(json.dumps(manifest, ensure_ascii=False, indent=2))
    elif not quiet:
        echo("\n".join([closing(manifest, out, options.cache), *encode_warnings(manifest)]))
