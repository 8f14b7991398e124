"""``datamix export``."""

from __future__ import annotations

from pathlib import Path

import click

from datamix.commands.options import CACHE, PATH, WORKERS, complete_export, echo


@click.command()
@click.argument("out", type=PATH)
@click.argument("more", nargs=-1, metavar="", shell_complete=complete_export)
@click.option(
    "--to",
    "formats",
    multiple=True,
    required=True,
    metavar="FORMAT...",
    shell_complete=complete_export,
    help="megatron llamafactory trl ...; an option as name:key=value.",
)
@CACHE
@WORKERS
def export(
    out: Path, more: tuple[str, ...], formats: tuple[str, ...], cache: Path | None, workers: int | None
) -> None:
    """Write an already built set in further trainer formats: datamix export OUT --to megatron trl."""
    from datamix.pipeline.built_sets import read_manifest
    from datamix.pipeline.exporting import export as write
    from datamix.pipeline.exporting import parse_format
    from datamix.pipeline.progress import Screen, short_bytes

    listed = write(out, [parse_format(f) for f in (*formats, *more)], cache, workers or 0, Screen())
    commands = (read_manifest(out) or {}).get("commands", {})
    for name in dict.fromkeys(entry["format"] for entry in listed):
        files = [entry for entry in listed if entry["format"] == name]
        keeps = ", ".join(files[0]["keeps"]) or "nothing of the mixture"
        size = short_bytes(sum(e["bytes"] for e in files))
        echo(f"{name:<14} {len(files):>4} files {size:>10}   keeps {keeps}")
        if name in commands:
            echo(f"{'':<15}next, in {out / name}: {commands[name]}")
