"""``datamix init``."""

from __future__ import annotations

from pathlib import Path

import click

from datamix.commands.options import PATH, echo


@click.command()
@click.argument("paths", nargs=-1)
@click.option(
    "--from",
    "configs",
    multiple=True,
    metavar="FILE",
    help="A configuration of axolotl, LLaMA-Factory, ms-swift, TRL, open-instruct or Megatron; with its dataset_info.json.",
)
@click.option(
    "-o", "--output", type=PATH, default=Path("recipe.yaml"), show_default=True, help="The recipe to write."
)
@click.option(
    "--kind",
    type=click.Choice(["pretrain", "sft", "preference", "prompt"]),
    help="What to build; default: a recipe for each kind that the files hold.",
)
@click.option("--tokenizer", metavar="ID", help="The tokenizer: a folder, a tokenizer.json or a Hub id.")
@click.option("--overwrite", is_flag=True, help="Replace the recipe if it exists.")
def init(
    paths: tuple[str, ...], configs: tuple[str, ...], output: Path, kind: str | None, tokenizer: str | None, overwrite: bool
) -> None:  # fmt: skip
    """Detect what files or folders hold and write a commented recipe that builds without an edit."""
    if configs:
        from datamix.jobs.from_trainer import write_recipe

        notes = write_recipe((*configs, *paths), output, overwrite, kind, tokenizer)
        echo("\n".join([f"Wrote {output}.", *notes, f"Next: datamix plan {output}"]))
        return
    if not paths:
        raise click.UsageError("Name files or folders, or a trainer's configuration with --from.")
    from datamix.jobs.init import write_recipes

    written = write_recipes(paths, kind, output, overwrite, tokenizer)
    for path, recipe in written:
        num = sum(source.num_records for source in recipe.sources)
        about = "~" * any(source.estimated for source in recipe.sources)
        plural = "s" * (len(recipe.sources) != 1)
        echo(f"Wrote {path}: {recipe.kind}, {len(recipe.sources)} source{plural}, {about}{num:,} records.")
    for part in written[0][1].unused:
        echo(f"Not used: {part.paths[0]}: {part.problem}")
    echo(f"Next: datamix plan {written[0][0]}")
