"""What the cache holds. It is safe to delete at any time: it costs only the time to fill it again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from datamix.pipeline.built_sets import all_sets
from datamix.pipeline.opening import read_manifest
from datamix.pipeline.progress import short_bytes
from datamix.pipeline.store import Store

_FILES = {
    "records.arrow": "prepared records",
    "tokens.arrow": "tokens",
    "fitted.arrow": "fitted records",
    "signatures.arrow": "dedupe signatures",
    "order.arrow": "orders",
    "train.arrow": "rows (integers)",
}


def cache_text(folder: Path) -> str:
    """Number and size of the results of each kind."""
    store = Store(folder / "store")
    sizes: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for key in store.finished():
        files = list(store.folder(key).iterdir())
        kind = next((_FILES[f.name] for f in files if f.name in _FILES), "other")
        numbers[kind] += 1
        sizes[kind] += sum(f.stat().st_size for f in files)
    if not numbers:
        return f"{folder} is empty."
    lines = [f"{kind:<20}{numbers[kind]:>8,}{short_bytes(size):>12}" for kind, size in sizes.most_common()]
    return "\n".join(
        [*lines, f"{'in all':<20}{sum(numbers.values()):>8,}{short_bytes(sum(sizes.values())):>12}"]
    )


def prune(folder: Path) -> str:
    """Remove results that no finished set needs; a set counts while its folder stands."""
    needed: set[str] = set()
    for key, found in all_sets(folder.absolute()).items():
        if (manifest := read_manifest(folder / found.out)) and manifest.get("key") == key:
            needed.update(found.keys)
        else:
            (folder / "sets" / f"{key}.json").unlink()
    store = Store(folder / "store")
    before = store.num_bytes()
    removed = [key for key in store.finished() if key not in needed]
    for key in removed:
        store.remove(key)
    store.sweep()
    freed = short_bytes(before - store.num_bytes())
    return f"Removed {len(removed):,} results, {freed}; kept {len(needed):,} that sets need."
