"""``datamix push``."""

from __future__ import annotations

from pathlib import Path

import click

from datamix.commands.options import PATH, echo


@click.command()
@click.argument("out", type=PATH)
@click.argument("target", metavar="hf://OWNER/NAME")
def push(out: Path, target: str) -> None:
    """Push a built set and its card to the Hugging Face Hub; a new repository is private."""
    from datamix.jobs.push import push as push_set

    echo(push_set(out, target))
