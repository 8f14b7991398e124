"""``datamix worker``."""

from __future__ import annotations

from pathlib import Path

import click

from datamix.commands.options import PATH, echo


@click.command()
@click.argument("cache", type=PATH)
@click.option(
    "--index",
    metavar="I/N",
    help="This is worker I of N, I from 0; default: from the variables of a Slurm array. Only where it begins to look for tasks.",
)
@click.option(
    "--idle",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="End when there was nothing to do for so many seconds.",
)
def worker(cache: Path, index: str | None, idle: float) -> None:
    """Carry out tasks of `build --engine workers` until every build in CACHE is finished. One process, one task at a time."""
    from datamix.jobs.worker import place_of, work

    work(cache, place_of(index), idle, echo)
