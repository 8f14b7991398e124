"""``datamix report``."""

from __future__ import annotations

from pathlib import Path

import click

from datamix.commands.options import PATH, echo


@click.command()
@click.argument("out", type=PATH)
@click.option(
    "--language",
    type=click.Choice(["en", "zh"]),
    default="en",
    show_default=True,
    help="Language of the page.",
)
@click.option("--losses", type=PATH, help="A losses.jsonl: adds loss, forgetting and overfitting by source.")
def report(out: Path, language: str, losses: Path | None) -> None:
    """Write the report page of a built set again, in English or Chinese; the manifest lists the new page."""
    from datamix.jobs.report import write_report

    echo(write_report(out, language, losses, lambda text: echo(text, err=True)))
