"""``datamix recommend``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from datamix.commands.options import PATH, echo


@click.command()
@click.argument("runs", type=PATH)
@click.option(
    "--target", metavar="NAME=W,...", help="The losses to lower and their weights; default: the mean of all."
)
@click.option(
    "--keep", multiple=True, metavar="'NAME <= base + 0.01'", help="A loss that must not exceed a value."
)
@click.option(
    "--base", metavar="RUN", help="The run that `base` in --keep stands for; default: the one called base."
)
@click.option(
    "--share",
    metavar="NAME",
    help="The source or group whose smallest share is asked for, where --keep names none.",
)
@click.option(
    "--where",
    "conditions",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Only runs of these params, tokens or step.",
)
@click.option("--recipe", type=PATH, help="The recipe of the runs: its weights, sizes and caps.")
@click.option(
    "--predict",
    type=PATH,
    metavar="OTHER.csv",
    help="Also predict the losses of other mixtures, whatever the verdict.",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="FOLDER",
    help="Write the page, the recommended recipe and predictions here.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
def recommend(
    runs: Path, target: str | None, keep: tuple[str, ...], base: str | None, share: str | None, conditions: tuple[str, ...],
    recipe: Path | None, predict: Path | None, output: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Recommend weights from runs and their losses, with intervals and a verdict; or say why these runs cannot tell."""
    from datamix.jobs.recommend import Request, answer
    from datamix.pipeline.progress import Screen
    from datamix.recipe import Recipe
    from datamix.reporting.recommendation_table import recommendation_text

    read = None if recipe is None else Recipe.read(recipe)
    request = Request(runs, target, keep, base, share, conditions, read, predict, output)
    found = answer(request, Screen(quiet=as_json))
    if as_json:
        click.echo(json.dumps(found.to_json(), ensure_ascii=False, indent=2))
    else:
        echo(recommendation_text(found))
        for path in found.written:
            echo(f"Wrote {path}.")
