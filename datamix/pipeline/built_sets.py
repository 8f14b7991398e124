"""Sets that are built: what the cache stores of each, how they are opened, and what of the cache no set needs.

The cache stores of every set its rows as integers and names of files, by the set's key, whatever its folder is called. With
it a virtual set is read, a finished set is written in text formats, and pruning knows what is still needed. Paths are stored
relative to the cache, so it can be moved. It is safe to delete at any time: that costs only the time to fill it again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache as once
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from datamix import __version__
from datamix.core.errors import DataError, MachineError
from datamix.core.hashing import canonical
from datamix.core.machine import advice, files_below, reason
from datamix.load import TrainingSet, open_set
from datamix.pipeline.foreign import is_sound
from datamix.pipeline.leases import Lease, partial_name, sweep
from datamix.pipeline.progress import short_bytes
from datamix.pipeline.rows import RowReader, RowSet
from datamix.pipeline.store import PARTIAL, Store, check_cache

_STORE = "@store"
_FORMAT = "2"  # of the results in a cache; 0.1.0 wrote none
_ORDERS = "orders"  # folder of the cache, one folder a set in it
_CONTENTS = {
    "records.arrow": "prepared records",
    "tokens.arrow": "tokens",
    "fitted.arrow": "fitted records",
    "signatures.arrow": "dedupe signatures",
    "order.arrow": "orders",
    "train.arrow": "rows (integers)",
}
Change = Mapping[str, Any]  # {"row": 24_000, "weights": {"general": 0.5, "medical": 0.5}}


@dataclass(frozen=True)
class BuiltSet:
    """The splits of a set, and the keys of every cached result that they need."""

    splits: dict[str, RowSet]
    keys: tuple[str, ...]
    out: str = ""  # where it was written last, relative to the cache


@once
def _adapter() -> TypeAdapter[BuiltSet]:
    return TypeAdapter(BuiltSet)  # 5 ms to make


def save(cache: Path, key: str, built: BuiltSet, out: Path) -> None:
    """Store a set, its paths below ``@store``."""
    store = cache / "store"
    splits = moved_paths(built.splits, lambda p: Path(_STORE, p.relative_to(store)))
    text = canonical(BuiltSet(splits, built.keys, os.path.relpath(out, cache)))
    write_file(cache, cache / "sets" / f"{key}.json", text)
    _note_place(cache, key, out)


def write_file(cache: Path, path: Path, text: str) -> None:
    """Write a file of the cache atomically, whoever else writes it at this moment."""
    draft = cache / "store" / PARTIAL / partial_name(path.stem)
    for folder in (draft.parent, path.parent):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def _note_place(cache: Path, key: str, out: Path) -> None:
    """Note one more folder that holds the set, so that pruning knows each of several."""
    path, place = cache / "sets" / f"{key}.places", json.dumps(os.path.relpath(out, cache))
    known = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    if place not in known:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(f"{place}\n")


def folders_of(cache: Path, key: str, out: str) -> list[Path]:
    """The folders that hold the set: those that are noted, and those beside them or the cache (a folder may be renamed)."""
    path = cache / "sets" / f"{key}.places"
    noted = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    folders = [cache / out, *(cache / json.loads(line) for line in noted)]
    parents = dict.fromkeys(Path(os.path.normpath(f)).parent for f in (*folders, cache))
    beside = (manifest.parent for parent in parents for manifest in sorted(parent.glob("*/manifest.json")))
    held: list[Path] = []
    for folder in dict.fromkeys(Path(os.path.normpath(f)) for f in (*folders, *beside)):
        with suppress(DataError):  # a set of a newer version
            if (read_manifest(folder) or {}).get("key") == key:
                held.append(folder)
    return held


def load(cache: Path, key: str) -> BuiltSet | None:
    """The set ``key``, or None where the cache does not know it, cannot read it, or has lost a part of it."""
    path = cache / "sets" / f"{key}.json"
    if not path.is_file():
        return None
    try:
        built = _adapter().validate_json(path.read_bytes())
    except ValidationError:  # damaged, or of another version
        return None
    paths: list[Path] = []

    def note(path: Path) -> Path:
        paths.append(path)
        return path

    moved_paths(built.splits, note)
    if any(path.parts[0] != _STORE or len(path.parts) < 3 or ".." in path.parts for path in paths):
        return None
    store = Store(cache / "store")
    for needed in built.keys:
        if store.find(needed) is None:
            # 0.1 left results without digests: sets built from them are still read
            is_older = (store.folder(needed) / "receipt.json").is_file() and not store.is_damaged(needed)
            if not is_older:
                return None
    splits = moved_paths(built.splits, lambda p: store.root.joinpath(*p.parts[1:]))
    used = {path.parts[2] for path in paths}
    is_native = used <= set(built.keys) and all(map(store.is_native, used))
    if not is_native and not is_sound([store.folder(key) for key in sorted(used)], splits):
        return None
    return replace(built, splits=splits)


def moved_paths(value: Any, move: Callable[[Path], Path]) -> Any:
    """The same value with every path in it moved."""
    if isinstance(value, Path):
        return move(value)
    if isinstance(value, tuple):
        return tuple(moved_paths(item, move) for item in value)
    if isinstance(value, dict):
        return {key: moved_paths(item, move) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        moved = {f.name: moved_paths(getattr(value, f.name), move) for f in fields(value)}
        return replace(value, **moved)
    return value


def all_sets(cache: Path) -> dict[str, BuiltSet]:
    """Every set that the cache holds whole, by key."""
    names = [p.stem for p in files_below(cache / "sets", "*.json")]
    return {name: built for name in names if (built := load(cache, name)) is not None}


def mark_format(cache: Path) -> str | None:
    """Note the format of results in the cache; return a line for the user where older results are there, once.

    A build makes again what it cannot use (the store decides). Sets that were built from it are still opened and exported.
    """
    path = cache / "format"
    if path.is_file() and path.read_text(encoding="utf-8") == _FORMAT:
        return None
    is_old = path.is_file() or any((cache / "store").glob("??/*/receipt.json"))
    write_file(cache, path, _FORMAT)
    if not is_old:
        return None
    return (
        f"The cache {cache} was filled by another version of datamix; what this version cannot use is ignored and made again. "
        f"`datamix cache --prune --cache {cache}` removes what no set needs."
    )


def open_any(
    path: str | Path,
    split: str = "train",
    cache: str | Path | None = None,
    changes: Sequence[Change] = (),
) -> TrainingSet:
    """Open the set that a build left at ``path``; ``cache`` is needed only where a virtual set's is not beside it.

    ``changes``: weights that change at a row of training, ``[{"row": 24_000, "weights": {"general": 0.5, "medical": 0.5}}]``;
    the rows before stay, a new schedule goes on behind them. A loader's state holds them under the same name.

    Raises DataError: nothing is there, a build that did not finish, or a virtual set whose cache was deleted; RecipeError: a
    change that cannot be made.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    if manifest is None or not (manifest.get("virtual") or changes):
        return open_set(folder, split)
    built = built_set(folder, manifest, cache)
    if changes:
        from datamix.pipeline.reweigh import reweighed  # imports what a mixture needs

        orders = cache_of(folder, cache) / _ORDERS / manifest["key"]
        rows, manifest = reweighed(built.splits["train"], manifest, changes, orders)
        return TrainingSet(RowReader(rows), manifest, folder, split)
    if split not in built.splits:
        raise DataError(f"{folder} has no split {split!r}; there are {', '.join(built.splits)}.")
    return TrainingSet(RowReader(built.splits[split]), manifest, folder, split)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished set, else None.

    Raises DataError where a newer major version wrote it, MachineError where it is there and cannot be read: the set may be whole.
    """
    path = folder / "manifest.json"
    try:
        if not path.is_file():
            return None
        manifest = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    except OSError as error:
        raise MachineError(f"{path} cannot be read: {reason(error)}. {advice(error)}") from error
    if not isinstance(manifest, dict):
        return None
    refuse_newer(folder, manifest)
    return manifest


def refuse_newer(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise DataError where a newer major version wrote the manifest: its fields may mean something else."""
    version = str(manifest.get("datamix_version", ""))
    major = version.partition(".")[0]
    if major.isdecimal() and int(major) > int(__version__.partition(".")[0]):
        raise DataError(
            f"{folder} was built by datamix {version}; this is {__version__}, which reads sets of its own major version and "
            f"older ones. Upgrade datamix to {major}.0 or newer to use this set."
        )


def built_set(folder: Path, manifest: dict[str, Any], cache: str | Path | None = None) -> BuiltSet:
    """What the cache stores of a set. Raises DataError naming the command that brings it back."""
    root = cache_of(folder, cache)
    built = load(root, manifest.get("key", ""))
    if built is None:
        raise DataError(
            f"The rows of {folder} are in the cache {root}, which no longer holds them. Run the same `datamix build RECIPE "
            f"-o {folder}` again (with the same --cache, if it had one): it brings them back."
        )
    with suppress(OSError):  # a cache that is only read
        _note_place(root, manifest["key"], folder.absolute())
    return built


def cache_of(folder: Path, cache: str | Path | None) -> Path:
    """The cache of a set: the named one, or that beside it."""
    return (Path(cache) if cache is not None else default_cache(folder)).absolute()


def default_cache(out: Path) -> Path:
    """``.datamix`` beside OUT, also where OUT is ``.`` or ends in ``..``."""
    return (out if out.name not in ("", "..") else out.resolve()).parent / ".datamix"


def cache_text(folder: Path) -> str:
    """Number and size of the results of each kind."""
    check_cache(folder)
    store = Store(folder / "store")
    sizes: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for key in store.finished():
        files = list(store.folder(key).iterdir())
        kind = next((_CONTENTS[f.name] for f in files if f.name in _CONTENTS), "other")
        numbers[kind] += 1
        sizes[kind] += sum(f.stat().st_size for f in files)
    for path in (folder / _ORDERS).rglob("*.arrow"):
        numbers["changed orders"] += 1
        sizes["changed orders"] += path.stat().st_size
    if not numbers:
        return f"{folder} is empty."
    lines = [f"{kind:<20}{numbers[kind]:>8,}{short_bytes(size):>12}" for kind, size in sizes.most_common()]
    total = f"{'in all':<20}{sum(numbers.values()):>8,}{short_bytes(sum(sizes.values())):>12}"
    return "\n".join([*lines, total])


def prune(folder: Path) -> str:
    """Remove results that neither a finished set nor a running build needs; a set counts while a folder holds it.

    So do the orders that ``changes=`` made. Those in the folder of orders itself are of 0.1.0, which did not say of which
    set they are; opening the set makes them anew.
    """
    check_cache(folder)
    if not folder.is_dir():
        return f"{folder} is empty."
    lease = Lease(folder, "prune")
    try:
        return _prune(folder, lease)
    finally:
        lease.close()


def _prune(folder: Path, lease: Lease) -> str:
    running, named = lease.named_by_builds()
    needed: set[str] = set(named)
    sets: set[str] = set()
    for key, built in all_sets(folder.absolute()).items():
        if key in named or folders_of(folder.absolute(), key, built.out):
            needed.update(built.keys)
            sets.add(key)
        else:
            for path in (folder / "sets").glob(f"{key}.*"):
                path.unlink(missing_ok=True)
    for path in (folder / "files").glob("*.json"):
        if path.name.partition("-")[0] not in sets:
            path.unlink(missing_ok=True)
    store = Store(folder / "store")
    before = store.num_bytes()
    removed = [key for key in store.finished() if key not in needed]
    for key in removed:
        store.remove(key)
    orders = folder / _ORDERS
    sweep(
        [*(store.root / PARTIAL).glob("*"), *(p for p in orders.glob("*/*") if p.suffix != ".arrow")], lease
    )
    with suppress(OSError):  # holds what a running build writes
        (store.root / PARTIAL).rmdir()
    unused = [p for p in orders.rglob("*.arrow") if p.parent == orders or p.parent.name not in sets]
    order_bytes = sum(p.stat().st_size for p in unused)
    for path in unused:
        path.unlink(missing_ok=True)
    for empty in orders.glob("*/"):
        if empty.name not in sets:
            shutil.rmtree(empty, ignore_errors=True)
    freed = short_bytes(before - store.num_bytes() + order_bytes)
    used = f" or {running} running {'build uses' if running == 1 else 'builds use'}" if running else ""
    num_kept = len(needed & set(store.finished()))
    return f"Removed {len(removed) + len(unused):,} results, {freed}; kept {num_kept:,} that sets need{used}."
