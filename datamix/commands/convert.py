"""``datamix convert``."""

from __future__ import annotations

import click

from datamix.commands.options import complete_record_format, echo


@click.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT")
@click.option(
    "--to",
    required=True,
    metavar="FORMAT",
    shell_complete=complete_record_format,
    help="alpaca, sharegpt, messages, ...",
)
@click.option("--lossy", is_flag=True, help="Allow what the format cannot hold to be lost.")
@click.option("--overwrite", is_flag=True, help="Replace the target if it exists.")
def convert(source: str, target: str, to: str, lossy: bool, overwrite: bool) -> None:
    """Write the records of one file in another format."""
    from datamix.jobs.convert import convert as convert_file

    echo(str(convert_file(source, target, to, lossy=lossy, overwrite=overwrite)))
