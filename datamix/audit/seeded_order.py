"""Whether the rows of each source come in the order that the seed gives, where rows are whole records.

The rows of a source are its live records (used, or left over) in the order of the inputs; pass p over them is the permutation
that sorts mix64(rank ^ salt(seed, "order", name, p)). Cost: 8 bytes a row emitted.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix.audit.fates import RECORD_FATES, Ledger
from datamix.audit.findings import Check, Findings
from datamix.audit.unchecked import Unchecked
from datamix.core.hashing import mix64, salt


class SeededOrder:
    """The records of each source in the order in which they were emitted."""

    def __init__(self, active: bool) -> None:
        self._active = active  # rows hold one record each
        self.skipped: list[str] = []
        self._emitted: dict[int, list[NDArray[np.int64]]] = defaultdict(list)

    @property
    def unchecked(self) -> list[Unchecked]:
        """The sources whose order no file shows."""
        if self._active and not self.skipped:
            return []
        of = f" of {', '.join(self.skipped)}" if self._active else ""
        return [Unchecked(f"seed's effect on the order{of}", () if self._active else ("seed", "recipe.seed"))]

    def add(self, source: NDArray[np.int64], number: NDArray[np.int64]) -> None:
        """Take rows: their sources and the numbers of their records, ``[num_rows]`` each."""
        if self._active and len(source) == len(number):
            for index in np.unique(source).tolist():
                self._emitted[index].append(number[source == index])

    def check(self, manifest: dict[str, Any], ledger: Ledger) -> Check | None:
        """The verdict; None where the order cannot be derived from the files."""
        if not self._active:
            return None
        found, num_checked = Findings("order"), 0
        for index, name in enumerate(ledger.inputs.names):
            live = self._live(ledger, index)
            if (
                name not in manifest["recipe"]["sources"]
                or len(live) != manifest["sources"][name]["available"]["rows"]
            ):
                if emitted_rows(manifest, name):
                    self.skipped.append(name)
                continue  # held out, or records that give several rows
            emitted = np.concatenate([*self._emitted[index], np.zeros(0, np.int64)])
            expected = _passes(live, manifest["seed"], name, len(emitted))
            wrong = np.flatnonzero(emitted != expected)
            if len(wrong):
                place = ledger.inputs.record(int(emitted[wrong[0]]))
                found.add(
                    f"{place} is row {int(wrong[0]):,} of {name}, by seed {manifest['seed']} another record is",
                    len(wrong),
                )
            num_checked += len(emitted)
        if not num_checked and found.check("").ok:
            return None
        return found.check(f"{num_checked:,} rows come in the order that seed {manifest['seed']} gives")

    def _live(self, ledger: Ledger, source: int) -> NDArray[np.int64]:
        inputs = ledger.inputs
        numbers = [
            np.arange(inputs.base[file], inputs.base[file + 1])
            for file in np.flatnonzero(inputs.source == source)
        ]
        whole = np.concatenate([*numbers, np.zeros(0, np.int64)])
        live = ledger.fate[whole] == RECORD_FATES.index("used")
        live |= np.isin(whole, np.fromiter(ledger.left_over, np.int64, len(ledger.left_over)))
        numbers_of_live: NDArray[np.int64] = whole[live]
        return numbers_of_live


def emitted_rows(manifest: dict[str, Any], name: str) -> int:
    """Rows of a source, by the manifest."""
    return int(manifest["sources"][name]["emitted"]["rows"])


def _passes(live: NDArray[np.int64], seed: int, name: str, num_rows: int) -> NDArray[np.int64]:
    """The first ``num_rows`` rows of all passes over a source; a pass equal to the one before is turned by one place."""
    passes: list[NDArray[np.int64]] = []
    while sum(map(len, passes)) < num_rows and len(live):
        ranks = np.arange(len(live), dtype=np.uint64)
        order = live[np.argsort(mix64(ranks ^ salt(seed, "order", name, len(passes))))]
        if passes and np.array_equal(order, passes[-1]):
            order = np.roll(order, 1)
        passes.append(order)
    return np.concatenate([*passes, np.zeros(0, np.int64)])[:num_rows]
