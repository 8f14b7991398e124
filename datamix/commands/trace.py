"""``datamix trace``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from datamix.commands.options import CACHE, PATH, echo


@click.command()
@click.argument("out", type=PATH)
@click.option("--row", type=int, required=True, help="The row, from 0.")
@click.option(
    "--split",
    type=click.Choice(["train", "validation"]),
    default="train",
    show_default=True,
    help="Where the row is.",
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, with the whole text before and after each step."
)
@CACHE
def trace(out: Path, row: int, split: str, as_json: bool, cache: Path | None) -> None:
    """Follow a row back to its bytes: file, place, licence, what each step changed, what was removed because of it.

    Exit code 1 where an input is missing or has changed.
    """
    from datamix.jobs.trace import trace as trace_row
    from datamix.reporting.summaries import trace_text

    traced = trace_row(out, row, split, cache)
    echo(json.dumps(traced, ensure_ascii=False, indent=2) if as_json else trace_text(traced))
    if any(record["steps"] is None for record in traced["records"]):
        sys.exit(1)
