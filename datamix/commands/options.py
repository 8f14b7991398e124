"""Options that several commands take alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from datamix.core.errors import visible

Option = Callable[[Callable[..., Any]], Callable[..., Any]]


class LocalPath(click.Path):
    """A path on this machine: ``Path`` would turn the ``//`` of a URL into ``/``, which opens and masks nothing."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" in str(value):
            self.fail(f"{value} is a URL, and a local path is needed here.", param, ctx)
        return super().convert(value, param, ctx)


def echo(text: object, err: bool = False) -> None:
    """Print text in which names of files and fields may stand: nothing in it controls the terminal."""
    click.echo(visible(str(text)), err=err)


PATH = LocalPath(path_type=Path)
WORKERS: Option = click.option(
    "--workers", type=click.IntRange(min=1), help="Processes; default: one a processor."
)
CACHE: Option = click.option(
    "--cache", type=PATH, help="Folder of intermediate results; default: .datamix beside OUT."
)
OVERRIDES: Option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Change one value of the recipe."
)


def complete_export(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of output formats, for the shell."""
    from datamix.exporters import EXPORT_FORMATS

    return [name for name in EXPORT_FORMATS if name.startswith(incomplete)]


def complete_record_format(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of record formats, for the shell."""
    from datamix.formats import RECORD_FORMATS

    return [name for name in RECORD_FORMATS if name.startswith(incomplete)]


def complete_source(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Sources and groups of the recipe that was named, for the shell; none where it cannot be read."""
    from datamix.core.errors import DatamixError
    from datamix.recipe import Recipe

    try:
        recipe = Recipe.read(
            ctx.params.get("recipe") or ctx.args[0]
        )  # what is not yet complete is not parsed
    except (DatamixError, IndexError):
        return []
    return [f"{name}=" for name in (*recipe.sources, *recipe.groups) if name.startswith(incomplete)]
