"""Options that several commands take alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Option = Callable[[Callable[..., Any]], Callable[..., Any]]

PATH = click.Path(path_type=Path)
WORKERS: Option = click.option(
    "--workers", type=click.IntRange(min=1), help="Processes; default: one a processor."
)
CACHE: Option = click.option(
    "--cache", type=PATH, help="Folder of intermediate results; default: .datamix beside OUT."
)
OVERRIDES: Option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY.PATH=VALUE", help="Change one value of the recipe."
)
