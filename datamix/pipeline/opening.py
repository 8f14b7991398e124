"""``datamix.open``: a set as rows, wherever they lie: in its own files, or, of a virtual set, in the cache."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamix import __version__
from datamix.core.errors import DataError
from datamix.load import TrainingSet, open_set
from datamix.pipeline import built_sets
from datamix.pipeline.rows import RowReader

Change = Mapping[str, Any]


def open_any(
    path: str | Path,
    split: str = "train",
    cache: str | Path | None = None,
    changes: Sequence[Change] = (),
) -> TrainingSet:
    """Open the set that a build left at ``path``; ``cache`` is needed only where a virtual set's is not beside it.

    ``changes``: weights that change at a row of training, ``[{"row": 24_000, "weights": {"general": 0.5, "medical": 0.5}}]``;
    the rows before stay, a new schedule goes on behind them. A loader's state holds them under the same name.

    Raises DataError: nothing is there, a build that did not finish, or a virtual set whose cache is gone; RecipeError: a
    change that cannot be made.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    if manifest is None or not (manifest.get("virtual") or changes):
        return open_set(folder, split)
    found = built_set(folder, manifest, cache)
    if changes:
        from datamix.pipeline.reweigh import reweighed

        rows, manifest = reweighed(found.splits["train"], manifest, changes, _cache_of(folder, cache))
        return TrainingSet(RowReader(rows), manifest, folder, split)
    if split not in found.splits:
        raise DataError(f"{folder} has no split {split!r}; there are {', '.join(found.splits)}.")
    return TrainingSet(RowReader(found.splits[split]), manifest, folder, split)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished set, else None. Raises DataError where a newer major version wrote it."""
    try:
        found = json.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(found, dict):
        return None
    refuse_newer(folder, found)
    return found


def refuse_newer(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise DataError where a newer major version wrote the manifest: its fields may mean something else."""
    version = str(manifest.get("datamix_version", ""))
    major = version.partition(".")[0]
    if major.isdecimal() and int(major) > int(__version__.partition(".")[0]):
        raise DataError(
            f"{folder} was built by datamix {version}; this is {__version__}, which reads sets of its own major version and "
            f"older ones. Upgrade datamix to {major}.0 or newer to use this set."
        )


def built_set(folder: Path, manifest: dict[str, Any], cache: str | Path | None = None) -> built_sets.BuiltSet:
    """What the cache remembers of a set. Raises DataError naming the command that brings it back."""
    root = _cache_of(folder, cache)
    found = built_sets.load(root, manifest.get("key", ""))
    if found is None:
        raise DataError(
            f"The rows of {folder} lie in the cache {root}, which no longer holds them. Run the same `datamix build RECIPE "
            f"-o {folder}` again (with the same --cache, if it had one): it brings them back."
        )
    return found


def _cache_of(folder: Path, cache: str | Path | None) -> Path:
    return (Path(cache) if cache is not None else default_cache(folder)).absolute()


def default_cache(out: Path) -> Path:
    """``.datamix`` beside OUT, also where OUT is ``.`` or ends in ``..``."""
    return (out if out.name not in ("", "..") else out.resolve()).parent / ".datamix"
