"""``datamix convert``."""

from __future__ import annotations

import click


@click.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option("--to", required=True, metavar="FORMAT", help="alpaca, sharegpt, messages, ...")
@click.option("--lossy", is_flag=True, help="Allow what the format cannot hold to be lost.")
@click.option("--overwrite", is_flag=True, help="Replace the target if it exists.")
def convert(source: str, target: str, to: str, lossy: bool, overwrite: bool) -> None:
    """Turn one file of records into another format."""
    from datamix.jobs.convert import convert as turn

    click.echo(str(turn(source, target, to, lossy=lossy, overwrite=overwrite)))
