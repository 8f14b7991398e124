"""``datamix cache``."""

from __future__ import annotations

from pathlib import Path

import click

from datamix.commands.options import PATH, echo


@click.command()
@click.option("--cache", type=PATH, default=Path(".datamix"), show_default=True)
@click.option("--prune", is_flag=True, help="Remove what no set beside the cache needs.")
def cache(cache: Path, prune: bool) -> None:
    """List what the cache holds, with sizes."""
    from datamix.pipeline.built_sets import cache_text
    from datamix.pipeline.built_sets import prune as prune_cache

    echo(prune_cache(cache) if prune else cache_text(cache))
