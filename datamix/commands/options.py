"""Options that several commands take alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Option = Callable[[Callable[..., Any]], Callable[..., Any]]


class LocalPath(click.Path):
    """A path on this machine: ``Path`` would turn the ``//`` of a URL into ``/``, which opens and masks nothing."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" in str(value):
            self.fail(f"{value} is a URL, and a local path is needed here.", param, ctx)
        return super().convert(value, param, ctx)


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
