"""``datamix diff``."""

from __future__ import annotations

from pathlib import Path

import click

from datamix.commands.options import PATH, echo


@click.command()
@click.argument("out1", type=PATH)
@click.argument("out2", type=PATH)
@click.option("--html", is_flag=True, help="The same as a page.")
def diff(out1: Path, out2: Path, html: bool) -> None:
    """Show what changed from one built set to another: recipe, inputs, records by source and reason, shares, lengths."""
    from datamix.reporting.differences import compare

    difference = compare(out1, out2)
    echo(difference.html() if html else str(difference))
