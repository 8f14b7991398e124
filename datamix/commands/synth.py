"""``datamix synth``."""

from __future__ import annotations

from pathlib import Path

import click

from datamix.commands.options import OVERRIDES, PATH, echo


@click.command()
@click.argument("recipe", type=PATH)
@click.option("-o", "--output", type=PATH, help="The folder to write; default: ./NAME.")
@OVERRIDES
@click.option("--quiet", is_flag=True, help="Show no progress and no messages; errors are shown.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest instead of the summary.")
def synth(recipe: Path, output: Path | None, overrides: tuple[str, ...], quiet: bool, as_json: bool) -> None:
    """Have a model write records. Safe to rerun: every answer is stored, and nothing is bought twice."""
    import json

    from datamix.jobs.synth import synthesize
    from datamix.pipeline.progress import Screen
    from datamix.recipe.synth_recipe import SynthRecipe
    from datamix.reporting.synth_page import synth_summary

    read = SynthRecipe.read(recipe, overrides)
    out = output or Path(read.name)
    manifest = synthesize(read, out, Screen(quiet=quiet))
    if as_json:
        click.echo(json.dumps(manifest, ensure_ascii=False, indent=2))
    elif not quiet:
        echo(synth_summary(manifest, out))
