"""What a build passes from step to step: its options, the fate of every record, the order of the rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix import mix
from datamix.core.contracts import Receipt
from datamix.pipeline.prepare_sources import PreparedSource
from datamix.recipe import Recipe
from datamix.tokenize import TokenizerFiles

RenderReport = Callable[[Path, dict[str, Any], NDArray[np.int64]], str]  # (OUT, manifest, row costs) -> HTML


@dataclass(frozen=True)
class Options:
    """How a build runs; none of it changes a byte of what is built, but ``sample``."""

    out: Path
    cache: Path
    workers: int = 0  # 0: as many as there are processors
    sample: int | None = None  # only this many records of each file, for a first look
    overwrite: bool = False


@dataclass(frozen=True)
class Decided:
    """Every record's fate, and the rows of every source."""

    sources: tuple[PreparedSource, ...]
    fates: Receipt
    packed: tuple[Receipt, ...]
    references: tuple[str, ...] = ()  # names of what else records were compared with


@dataclass(frozen=True)
class Arranged:
    """The whole order, as integers."""

    quota: mix.Quota
    order: Receipt


@dataclass(frozen=True)
class ResolvedBuild:
    """A set as it was decided: everything but its files."""

    recipe: Recipe
    tokenizer: TokenizerFiles
    decided: Decided
    arranged: Arranged
