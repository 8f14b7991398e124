"""``datamix init``."""

from __future__ import annotations

from pathlib import Path

import click

from datamix.commands.options import PATH


@click.command()
@click.argument("paths", nargs=-1, required=True)
@click.option(
    "-o", "--output", type=PATH, default=Path("recipe.yaml"), show_default=True, help="The recipe to write."
)
@click.option(
    "--kind",
    type=click.Choice(["pretrain", "sft", "preference", "prompt"]),
    help="What to build; default: what most files hold.",
)
@click.option("--overwrite", is_flag=True, help="Replace the recipe if it exists.")
def init(paths: tuple[str, ...], output: Path, kind: str | None, overwrite: bool) -> None:
    """Detect what files or folders hold and write a commented recipe that builds without an edit."""
    from datamix.jobs.init import write_recipe

    write_recipe(paths, kind, output, overwrite)
    click.echo(f"Wrote {output}. Next: datamix plan {output}")
