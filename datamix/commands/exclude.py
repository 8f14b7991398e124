"""``datamix exclude``."""

from __future__ import annotations

from pathlib import Path

import click

from datamix.commands.options import CACHE, PATH, WORKERS, echo


@click.command()
@click.argument("out", type=PATH)
@click.option(
    "--by",
    type=PATH,
    required=True,
    help="JSON Lines of {source, file, record}, {file}, {license} or {sha256}.",
)
@CACHE
@WORKERS
def exclude(out: Path, by: Path, cache: Path | None, workers: int | None) -> None:
    """Take records out of a built set, its exports and every set from the same preparation, without tokenizing again."""
    from datamix.jobs.exclude import exclude as run_exclude
    from datamix.jobs.exclude import summary
    from datamix.pipeline.built_sets import cache_of, read_manifest
    from datamix.pipeline.progress import Screen
    from datamix.recipe.excluded import read_entries

    entries = read_entries(by)
    before = ((read_manifest(out) or {}).get("recipe") or {}).get("exclude") or ()
    had = any(entry not in [e.model_dump() for e in entries] for entry in before)
    sets = run_exclude(out, entries, cache, workers or 0, Screen())
    echo(summary(sets, str(by), cache_of(out, cache), had))
