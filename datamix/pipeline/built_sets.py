"""What the cache remembers of every set that was built from it: its rows as integers and names of files.

A set finds itself by its key, whatever its folder is called. With it a virtual set is read, a finished set is written in
text formats, and pruning knows what is still needed. Paths are stored relative to the cache, so it can be moved.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from datamix.core.hashing import canonical
from datamix.pipeline.rows import RowSet
from datamix.pipeline.store import Store

_HERE = "@store/"
_FORMAT = "2"  # of the results in a cache; 0.1.0 wrote none


@dataclass(frozen=True)
class BuiltSet:
    """The splits of a set, and the keys of every cached result that they need."""

    splits: dict[str, RowSet]
    keys: tuple[str, ...]
    out: str = ""  # where it was written last, relative to the cache


def save(cache: Path, key: str, found: BuiltSet, out: Path) -> None:
    """Remember a set."""
    folder = cache / "sets"
    folder.mkdir(parents=True, exist_ok=True)
    placed = BuiltSet(found.splits, found.keys, os.path.relpath(out, cache))
    text = canonical(placed).replace(f"{cache / 'store'}/", _HERE)
    partial = folder / f"{key}.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / f"{key}.json")


def load(cache: Path, key: str) -> BuiltSet | None:
    """The set ``key``, or None where the cache does not know it, cannot read it, or has lost a part of it."""
    path = cache / "sets" / f"{key}.json"
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8").replace(_HERE, f"{cache / 'store'}/")
    try:
        found = _kept_sets().validate_json(text)
    except ValidationError:  # damaged, or of another version
        return None
    store = Store(cache / "store")
    whole = all(store.find(key) is not None or _is_older(store, key) for key in found.keys)
    return found if whole else None


def _is_older(store: Store, key: str) -> bool:
    """Whether a result is there as 0.1 left it, without digests: sets built from it are still read."""
    return (store.folder(key) / "receipt.json").is_file() and not store.is_damaged(key)


@once
def _kept_sets() -> TypeAdapter[BuiltSet]:
    return TypeAdapter(BuiltSet)  # 5 ms to make


def all_sets(cache: Path) -> dict[str, BuiltSet]:
    """Every set that the cache remembers whole, by key."""
    names = sorted(p.stem for p in (cache / "sets").glob("*.json"))
    return {name: found for name in names if (found := load(cache, name)) is not None}


def mark_format(cache: Path) -> str | None:
    """Note the format of results in the cache; return a line for the user where older results are there, once.

    A build makes again what it cannot use (the store decides). Sets that were built from it are still opened and exported.
    """
    path = cache / "format"
    if path.is_file() and path.read_text(encoding="utf-8") == _FORMAT:
        return None
    is_old = path.is_file() or any((cache / "store").glob("??/*/receipt.json"))
    path.write_text(_FORMAT, encoding="utf-8")
    if not is_old:
        return None
    return (
        f"The cache {cache} was filled by another version of datamix; what this version cannot use is ignored and made again. "
        f"`datamix cache --prune --cache {cache}` removes what no set needs."
    )
