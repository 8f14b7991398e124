"""``datamix inspect``."""

from __future__ import annotations

from pathlib import Path

import click

from datamix.commands.options import PATH


@click.command()
@click.argument("path", type=PATH)
@click.option("--row", type=int, help="Show this row.")
@click.option(
    "--stats",
    is_flag=True,
    help="A set: lengths, shares, vocabulary. A file: what each cleaning step would do.",
)
@click.option("--removed", is_flag=True, help="Duplicates side by side with what was kept.")
@click.option("--html", is_flag=True, help="A page of a hundred rows.")
def inspect(path: Path, row: int | None, stats: bool, removed: bool, html: bool) -> None:
    """Show records of a file, or rows of a built set with their trained tokens coloured."""
    from datamix.reporting.inspection import show

    click.echo(show(path, row, stats, removed, html))
