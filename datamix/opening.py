"""``datamix.open``: a set as rows, wherever they lie: in its own files, or, of a virtual set, in the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import kept
from .errors import DataError
from .load import TrainingSet, open_set
from .phases.rows import RowReader


def open_any(path: str | Path, split: str = "train", cache: str | Path | None = None) -> TrainingSet:
    """Open the set that a build left at ``path``; ``cache`` is needed only where a virtual set's is not beside it.

    Raises DataError: nothing is there, a build that did not finish, or a virtual set whose cache is gone.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    if manifest is None or not manifest.get("virtual"):
        return open_set(folder, split)
    found = kept_set(folder, manifest, cache)
    if split not in found.splits:
        raise DataError(f"{folder} has no split {split!r}; there are {', '.join(found.splits)}.")
    return TrainingSet(RowReader(found.splits[split]), manifest, folder, split)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished set, else None."""
    try:
        found = json.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def kept_set(folder: Path, manifest: dict[str, Any], cache: str | Path | None = None) -> kept.KeptSet:
    """What the cache remembers of a set. Raises DataError naming the command that brings it back."""
    root = Path(cache) if cache is not None else folder.parent / ".datamix"
    found = kept.load(root.absolute(), manifest.get("key", ""))
    if found is None:
        raise DataError(
            f"The rows of {folder} lie in the cache {root}, which no longer holds them. Run the same `datamix build RECIPE "
            f"-o {folder}` again (with the same --cache, if it had one): it brings them back."
        )
    return found
