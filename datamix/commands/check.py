"""``datamix check``."""

from __future__ import annotations

import sys

import click

from datamix.commands.options import echo


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

    reasons: dict[str, int] = {}
    for problem in validate(list(files), kind):
        reason = problem.code or "whole file"
        reasons[reason] = reasons.get(reason, 0) + 1
        echo(str(problem))
    if total := sum(reasons.values()):
        ranked = sorted(reasons.items(), key=lambda item: -item[1])
        by_reason = ", ".join(f"{reason} {num:,}" for reason, num in ranked)
        echo(f"{total:,} problem{'s' * (total != 1)}: {by_reason}.", err=True)
        sys.exit(1)
    echo("Every record fits.")
