"""LLaMA-Factory's ``dataset_info.json`` as a source: each of its entries becomes a separate source.

``path: data/dataset_info.json`` takes every entry whose files are beside it; ``dataset_info.json#alpaca_zh,identity`` takes
those named. The entry says format, columns and files; group, max_epochs and the like are the source's, for each entry.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datamix.core.errors import RecipeError, nearest
from datamix.formats import DatasetEntry, dataset_info

_FILE = "dataset_info.json"


def expand(sources: Any, base: str) -> Any:
    """Plain sources with every catalogue replaced by its entries. Raises RecipeError for what cannot be read."""
    if not isinstance(sources, dict):
        return sources
    expanded: dict[str, Any] = {}
    for name, source in sources.items():
        path = source.get("path") if isinstance(source, dict) else None
        if not isinstance(path, str) or Path(path.partition("#")[0]).name != _FILE:
            expanded[name] = source
            continue
        folder = Path(path.partition("#")[0]).parent
        for entry in _entries(name, path, base):
            if entry.name in expanded or (entry.name in sources and entry.name != name):
                raise RecipeError(
                    f"sources.{name}: the entry {entry.name} of {path} has the name of another source. Rename that source."
                )
            files = [f if "://" in f else (folder / f).as_posix() for f in entry.files]
            value = {"format": entry.format, "columns": dict(entry.columns), **source, "path": files}
            if entry.max_records is not None:
                value.setdefault("max_records", entry.max_records)
            expanded[entry.name] = value
    return expanded


def _entries(name: str, path: str, base: str) -> list[DatasetEntry]:
    """The entries that ``path`` names, or all whose files exist."""
    file, _, requested = path.partition("#")
    place = Path(base, file)
    if not place.is_file():
        raise RecipeError(
            f"sources.{name}.path: there is no {file} (looked in {base}). Give the path of dataset_info.json."
        )
    entries = {entry.name: entry for entry in dataset_info(place)}
    if not requested:
        local = [
            e
            for e in entries.values()
            if e.problem is None and all((place.parent / f).exists() for f in e.files)
        ]
        if not local:
            raise RecipeError(
                f"sources.{name}: none of the {len(entries)} entries of {file} has its files beside it. Get the files, or name other data."
            )
        return local
    names = [part.strip() for part in requested.split(",")]
    for word in names:
        if word not in entries:
            close = nearest(word, list(entries))
            raise RecipeError(
                f"sources.{name}.path: {file} has no entry {word!r}"
                + (f"; did you mean {close}?" if close else ".")
            )
        if entries[word].problem is not None:
            raise RecipeError(
                f"sources.{name}.path: the entry {word} of {file} cannot be read: {entries[word].problem}."
            )
    return [entries[word] for word in names]
