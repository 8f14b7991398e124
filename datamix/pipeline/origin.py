"""What the cache notes of a set beside its rows: how the fate of its records was decided, and where its input files were.

With it a set is decided anew without its inputs (``exclude``), and a row is followed back to its bytes (``trace``). It stands
beside the set in ``sets/``, by the set's key. Paths in the store are stored below ``@store``; those of inputs relative to the cache,
so that both can be moved; of URLs only what is not secret.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache as once
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from datamix.core.errors import DataError, mask_url
from datamix.core.hashing import canonical
from datamix.pipeline.built_sets import moved_paths, write_file
from datamix.pipeline.prepare_sources import PreparedSource
from datamix.pipeline.scan import InputFile
from datamix.pipeline.select import SelectSpec

_STORE = "@store"


@dataclass(frozen=True)
class Origin:
    """How a set was decided; ``scale`` is that of a sweep; its input files in the order of the manifest."""

    select: SelectSpec
    scale: float
    inputs: tuple[InputFile, ...]


@once
def _adapter() -> TypeAdapter[Origin]:
    return TypeAdapter(Origin)


def _path(cache: Path, key: str) -> Path:
    return cache / "sets" / f"{key}.origin"


def input_files(sources: Sequence[PreparedSource], cache: Path) -> tuple[InputFile, ...]:
    """The input files, with their places as the cache notes them."""
    return tuple(
        replace(file, path=mask_url(file.path) if "://" in file.path else os.path.relpath(file.path, cache))
        for source in sources
        for file in source.files
    )


def save(cache: Path, key: str, origin: Origin) -> None:
    """Store what a set was decided by."""
    store = cache / "store"

    def stored(path: Path) -> Path:  # an earlier set may be in another cache
        return Path(_STORE, path.relative_to(store)) if path.is_relative_to(store) else path

    moved = moved_paths(origin, stored)
    write_file(cache, _path(cache, key), canonical(moved))


def is_known(cache: Path, key: str) -> bool:
    """Whether the cache knows what a set was decided by."""
    return _path(cache, key).is_file()


def find(cache: Path, key: str) -> Origin | None:
    """What the set ``key`` was decided by; None where the cache does not know it."""
    try:
        origin = _adapter().validate_json(_path(cache, key).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
    store = cache / "store"
    moved: Origin = moved_paths(
        origin, lambda p: store.joinpath(*p.parts[1:]) if p.parts[:1] == (_STORE,) else p
    )
    inputs = [
        f if "://" in f.path else replace(f, path=os.path.normpath(cache / f.path)) for f in moved.inputs
    ]
    return replace(moved, inputs=tuple(inputs))


def load(cache: Path, key: str, out: Path) -> Origin:
    """The same. Raises DataError where the cache does not know it."""
    if (origin := find(cache, key)) is None:
        raise DataError(
            f"The cache {cache} does not know how {out} was decided: another version built it, or the cache was deleted. Run the "
            f"same `datamix build RECIPE -o {out}` again (nothing of it changes), then this command."
        )
    return origin
