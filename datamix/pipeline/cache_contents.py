"""What the cache holds. It is safe to delete at any time: it costs only the time to fill it again."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from datamix.pipeline.built_sets import all_sets
from datamix.pipeline.opening import read_manifest
from datamix.pipeline.progress import short_bytes
from datamix.pipeline.reweigh import ORDERS
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
    for path in (folder / ORDERS).rglob("*.arrow"):
        numbers["changed orders"] += 1
        sizes["changed orders"] += path.stat().st_size
    if not numbers:
        return f"{folder} is empty."
    lines = [f"{kind:<20}{numbers[kind]:>8,}{short_bytes(size):>12}" for kind, size in sizes.most_common()]
    return "\n".join(
        [*lines, f"{'in all':<20}{sum(numbers.values()):>8,}{short_bytes(sum(sizes.values())):>12}"]
    )


def prune(folder: Path) -> str:
    """Remove results that no finished set needs; a set counts while its folder stands."""
    needed: set[str] = set()
    standing: set[str] = set()
    for key, found in all_sets(folder.absolute()).items():
        if (manifest := read_manifest(folder / found.out)) and manifest.get("key") == key:
            needed.update(found.keys)
            standing.add(key)
        else:
            (folder / "sets" / f"{key}.json").unlink()
    for path in (folder / "files").glob("*.json"):
        if path.name.partition("-")[0] not in standing:
            path.unlink()
    store = Store(folder / "store")
    before = store.num_bytes()
    removed = [key for key in store.finished() if key not in needed]
    for key in removed:
        store.remove(key)
    store.sweep()
    num_orders, order_bytes = _prune_orders(folder / ORDERS, standing)
    freed = short_bytes(before - store.num_bytes() + order_bytes)
    return f"Removed {len(removed) + num_orders:,} results, {freed}; kept {len(needed):,} that sets need."


def _prune_orders(folder: Path, standing: Iterable[str]) -> tuple[int, int]:
    """Remove the orders that ``changes=`` made of sets no longer there; their number and bytes.

    Files that lie in ``folder`` itself are of 0.1.0, which did not say whose they are; opening the set makes them anew.
    """
    removed = [p for p in folder.rglob("*.arrow") if p.parent == folder or p.parent.name not in standing]
    num_bytes = sum(p.stat().st_size for p in removed)
    for path in removed:
        path.unlink()
    for empty in folder.glob("*/"):
        if empty.name not in standing:
            shutil.rmtree(empty, ignore_errors=True)
    return len(removed), num_bytes
