"""``datamix check``."""

from __future__ import annotations

import sys

import click


@click.command()
@click.argument("files", nargs=-1, required=True)
@click.option(
    "--as",
    "kind",
    type=click.Choice(["text", "sft", "preference", "prompt"]),
    help="The kind they should be.",
)
def check(files: tuple[str, ...], kind: str | None) -> None:
    """Validate records: which line, which field, why. Exit 1 if one does not fit."""
    from datamix.jobs.check import check as validate

    problems = 0
    for problem in validate(list(files), kind):
        problems += 1
        click.echo(str(problem))
    if problems:
        click.echo(f"{problems:,} problem{'s' * (problems != 1)}.", err=True)
        sys.exit(1)
    click.echo("Every record fits.")
