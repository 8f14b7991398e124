"""``datamix score``."""

from __future__ import annotations

from pathlib import Path

import click

from datamix.commands.options import CACHE, PATH, WORKERS, echo


@click.command()
@click.argument("file_or_recipe")
@click.option(
    "--by",
    required=True,
    metavar="METHOD",
    help="nll:MODEL, ifd:MODEL (MODEL or URL#MODEL), dsir:FILES, linear:GOOD,OTHER, fasttext:FILE[#LABEL], "
    "classifier:MODEL[#LABEL] or jsonl:FILE.",
)
@click.option("--name", help="Name of the score; default: the method.")
@click.option(
    "-o", "--output", type=PATH, default="scores.parquet", show_default=True, help="The file to write."
)
@CACHE
@WORKERS
def score(
    file_or_recipe: str, by: str, name: str | None, output: Path, cache: Path | None, workers: int | None
) -> None:
    """Give every record of a file or a recipe a number. Safe to rerun: an interrupted run resumes."""
    from datamix.jobs.score import score as score_records
    from datamix.pipeline.built_sets import default_cache
    from datamix.pipeline.progress import Screen
    from datamix.pipeline.steps import Options

    options = Options(output, cache or default_cache(output), workers or 0)
    echo(str(score_records(file_or_recipe, by, output, options, name, Screen())))
