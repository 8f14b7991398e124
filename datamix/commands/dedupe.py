"""``datamix dedupe``."""

from __future__ import annotations

from typing import Any

import click

from datamix.commands.options import echo


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="IN...")
@click.option("-o", "--output", required=True, help="The file to write; the audit is written beside it.")
@click.option(
    "--threshold", type=float, default=0.8, show_default=True, help="Jaccard similarity of near duplicates."
)
@click.option("--exact-only", is_flag=True, help="Leave near duplicates alone.")
@click.option("--scope", type=click.Choice(["across", "within"]), default="across", show_default=True)
@click.option(
    "--keep", type=click.IntRange(min=1), default=1, show_default=True, help="Records kept per cluster."
)
@click.option("--longest", is_flag=True, help="Keep the longest of a cluster, not the first.")
@click.option("--column", help="Compare this column as text, whatever the records are.")
@click.option("--overwrite", is_flag=True, help="Replace the target and its audit if they exist.")
def dedupe(
    inputs: tuple[str, ...], output: str, threshold: float, exact_only: bool, scope: Any, keep: int, longest: bool,
    column: str | None, overwrite: bool,
) -> None:  # fmt: skip
    """Deduplicate plain files, with the engine and the audit of a build."""
    from datamix.dedup import DedupeSpec, NearSpec
    from datamix.jobs.deduplicate import deduplicate

    near = None if exact_only else NearSpec(threshold=threshold)
    spec = DedupeSpec(near=near, scope=scope, keep=keep, rank_by="longest" if longest else "first")
    echo(str(deduplicate(list(inputs), output, spec, column, overwrite)))
