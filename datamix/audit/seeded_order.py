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
from datamix.audit.findings import Check, Findings, Unchecked
from datamix.core.hashing import mix64, salt


class SeededOrder:
    """The records of each source in the order in which they were emitted."""

    def __init__(self, active: bool) -> None:
        self._active = active  # rows hold one record each
        self._skipped: list[str] = []
        self._emitted: dict[int, list[NDArray[np.int64]]] = defaultdict(list)

    def add(self, source: NDArray[np.int64], number: NDArray[np.int64]) -> None:
        """Take rows: their sources and the numbers of their records, ``[num_rows]`` each."""
        if self._active and len(source) == len(number):
            for index in np.unique(source).tolist():
                self._emitted[index].append(number[source == index])

    def check(self, manifest: dict[str, Any], ledger: Ledger) -> Check | None:
        """The verdict; None where the order cannot be derived from the files."""
        if not self._active:
            return None
        findings, num_checked, seed, inputs = Findings("order"), 0, manifest["seed"], ledger.inputs
        usable = ledger.fate == RECORD_FATES.index("used")
        usable[list(ledger.left_over)] = True
        for index, name in enumerate(inputs.names):
            source = manifest["sources"][name]
            files = np.flatnonzero(inputs.source == index)
            ranges = [np.arange(inputs.base[file], inputs.base[file + 1]) for file in files]
            live = np.concatenate([*ranges, np.zeros(0, np.int64)])
            live = live[usable[live]]
            known = name in manifest["recipe"]["sources"] and len(live)
            if not known or len(live) != source["available"]["rows"]:
                if source["emitted"]["rows"]:
                    self._skipped.append(name)
                continue  # held out, or records that give several rows
            emitted = np.concatenate([*self._emitted[index], np.zeros(0, np.int64)])
            passes: list[NDArray[np.int64]] = []
            while len(passes) * len(live) < len(emitted):
                ranks = np.arange(len(live), dtype=np.uint64)
                order = live[np.argsort(mix64(ranks ^ salt(seed, "order", name, len(passes))))]
                # A pass equal to the one before is turned by one place.
                same = bool(passes) and np.array_equal(order, passes[-1])
                passes.append(np.roll(order, 1) if same else order)
            expected = np.concatenate([*passes, np.zeros(0, np.int64)])[: len(emitted)]
            wrong = np.flatnonzero(emitted != expected)
            if len(wrong):
                row, record = int(wrong[0]), inputs.record(int(emitted[wrong[0]]))
                text = f"{record} is row {row:,} of {name}, by seed {seed} another record is"
                findings.add(text, len(wrong))
            num_checked += len(emitted)
        if not num_checked and not findings.num:
            return None
        return findings.check(f"{num_checked:,} rows come in the order that seed {seed} gives")

    def unchecked(self) -> list[Unchecked]:
        """The sources whose order no file shows, once it was checked."""
        if not self._active:
            return [Unchecked("seed's effect on the order", ("seed", "recipe.seed"))]
        return [Unchecked(f"seed's effect on the order of {', '.join(self._skipped)}")] * bool(self._skipped)
