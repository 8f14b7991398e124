"""``datamix schema``."""

from __future__ import annotations

import click


@click.command()
@click.argument("name", default="recipe")
def schema(name: str) -> None:
    """Print a published JSON Schema: recipe, synth, text, sft, preference, prompt, row or manifest."""
    from datamix.recipe.schemas import schema_text

    click.echo(schema_text(name), nl=False)
