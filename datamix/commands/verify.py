"""``datamix verify``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from datamix.commands.options import PATH
from datamix.core.errors import visible


@click.command()
@click.argument("out", type=PATH)
@click.option(
    "--inputs",
    type=click.FloatRange(min=0, max=1),
    is_flag=False,
    flag_value=0.01,
    metavar="[SHARE]",
    help="Also read the raw files, and make a share of the rows again from them; 1 is all. Default share: 0.01.",
)
def verify(out: Path, inputs: float | None) -> None:
    """Recount everything the manifest claims from the files themselves; exit 1 if a promise does not hold."""
    from datamix.audit import verify as recount
    from datamix.pipeline.out_folder import clear_failed, mark_failed

    checks = recount(out, inputs)
    for check in checks:
        mark = click.style("ok  ", fg="green") if check.ok else click.style("FAIL", fg="red", bold=True)
        mark = click.style("note", dim=True) if check.name == "not checked" else mark
        line = f"{check.name:<14} {check.detail}".replace("\n", "\u240a")
        click.echo(f"{mark} {visible(line)}")
    if not all(check.ok for check in checks):
        mark_failed(out)
        sys.exit(1)
    clear_failed(out)
