"""The ledger derived again: one fate for every record that was read, from the emitted ids and the audit files alone.

The idea: an input file's records have ordinals, so all records of a set are one array of bytes. Each line of
``rejects/`` and ``removed/`` and each id in ``validation/`` and ``train/`` writes its fate there; a place that nobody
wrote was lost silently, a place written twice was counted twice.

Cost: one byte a record, and 17 bytes a piece emitted for the repeats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datamix.audit.findings import Findings
from datamix.audit.row_laws import Pieces

RECORD_FATES = ("none", "rejected", "cleaned", "removed", "dropped", "validation", "used", "unused")
_CODE = {name: code for code, name in enumerate(RECORD_FATES)}
_DUPLICATE = 16  # added to the code of a record removed in favour of another
_REASONS = {
    "rejected": "rejected_by",
    "cleaned": "cleaned_by",
    "removed": "removed_by",
    "dropped": "dropped_by",
    "unused": "unused_by",
}


@dataclass(frozen=True)
class Inputs:
    """The input files as ranges of one numbering of all records."""

    source: NDArray[np.int64]  # [num_files] index of the source
    base: NDArray[np.int64]  # [num_files + 1] number of the first record of each file
    names: tuple[str, ...]  # of sources
    paths: tuple[str, ...]  # of files

    @staticmethod
    def of(manifest: dict[str, Any]) -> Inputs:
        """The numbering that a manifest's inputs give."""
        names = tuple(manifest["sources"])
        known = {name: index for index, name in enumerate(names)}
        entries = manifest["inputs"]
        base = np.zeros(len(entries) + 1, np.int64)
        np.cumsum([e["records"] for e in entries], out=base[1:])
        source = np.array([known.get(e["source"], -1) for e in entries], np.int64)
        return Inputs(source, base, names, tuple(e["path"] for e in entries))

    def number(self, file: NDArray[np.int64], record: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of each record; -1 where no input file holds it."""
        known = (file >= 0) & (file < len(self.source))
        safe = np.where(known, file, 0)
        known &= (record >= 0) & (record < self.base[safe + 1] - self.base[safe])
        return np.where(known, self.base[safe] + record, -1)

    def record(self, number: int) -> str:
        """A record for a person: ``record 12 of data/a.jsonl``."""
        file = int(np.searchsorted(self.base, number, side="right")) - 1
        return f"record {number - int(self.base[file]):,} of {self.paths[file]}"


class Ledger:
    """The fate of every record, as the files tell it."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.fate = np.zeros(int(inputs.base[-1]), np.uint8)
        self.reasons: dict[str, Counter[tuple[str, str]]] = {key: Counter() for key in _REASONS.values()}
        self.found = Findings("ledger")
        self.left_over: set[int] = set()  # numbers of records that could have been used
        strangers = [path for path, source in zip(inputs.paths, inputs.source, strict=True) if source < 0]
        if strangers:
            self.found.add(
                f"{strangers[0]} belongs to a source that the manifest does not know", len(strangers)
            )

    def mark(self, fate: str, numbers: NDArray[np.int64], where: str) -> None:
        """Give records their fate; one that has another already, or this one twice, is a violation."""
        strangers = int((numbers < 0).sum())
        self.found.add(f"{where} names a record that no input file holds", strangers)
        numbers = numbers[numbers >= 0]
        unique, counts = np.unique(numbers, return_counts=True)
        taken = unique[self.fate[unique] != 0]
        if len(taken):
            first, had = int(taken[0]), RECORD_FATES[self.fate[taken[0]] % _DUPLICATE]
            self.found.add(f"{self.inputs.record(first)} is {had} and, in {where}, {fate} too", len(taken))
        twice = unique[counts > 1]
        if len(twice):
            self.found.add(f"{where} names {self.inputs.record(int(twice[0]))} twice", len(twice))
        self.fate[unique] = _CODE[fate]

    def read_rejects(self, path: Path, source: str, where: str) -> None:
        """Take one file of ``rejects/``."""
        index = {
            p: i
            for i, p in enumerate(self.inputs.paths)
            if self.inputs.names[self.inputs.source[i]] == source
        }
        files: list[int] = []
        records: list[int] = []
        for line in _json_lines(path):
            files.append(index.get(line["file"], -1) if line["source"] == source else -1)
            records.append(line["record"])
            self.reasons["rejected_by"][source, line["reason"]] += 1
        numbers = self.inputs.number(np.array(files, np.int64), np.array(records, np.int64))
        self.mark("rejected", numbers, where)

    def read_removed(self, path: Path, where: str) -> None:
        """Take one file of ``removed/``."""
        for batch in pq.ParquetFile(path).iter_batches(
            columns=["source", "file", "record", "fate", "reason"]
        ):
            numbers = self._numbers(batch, "file", "record")
            sources = np.array(batch.column("source").to_pylist(), object)
            reasons = batch.column("reason").to_pylist()
            fates = np.array(batch.column("fate").to_pylist(), object)
            for fate in sorted(set(fates)):
                if fate not in ("cleaned", "removed", "dropped", "unused"):
                    self.found.add(f"{where} knows a fate {fate!r}", int((fates == fate).sum()))
                    continue
                self.mark(fate, numbers[fates == fate], where)
            self._check_owner(numbers, sources, where)
            held = numbers[np.isin(np.array(reasons, object), ["exact", "near"]) & (fates == "removed")]
            self.fate[held[held >= 0]] |= _DUPLICATE
            left = numbers[np.isin(np.array(reasons, object), ["not_needed"]) & (fates == "unused")]
            self.left_over.update(left[left >= 0].tolist())
            for fate, source, reason in zip(fates, sources, reasons, strict=True):
                if fate in _REASONS:
                    self.reasons[_REASONS[fate]][source, reason] += 1

    def check_kept(self, path: Path, where: str) -> None:
        """Whatever a duplicate was removed for must itself have been kept by the deduplication."""
        columns = ["kept_file", "kept_record"]
        for batch in pq.ParquetFile(path).iter_batches(columns=columns):
            inside = np.array(batch.column("kept_file").is_valid())
            kept = self._numbers(batch, "kept_file", "kept_record")[inside]
            if (kept < 0).any():
                self.found.add(f"{where} names a kept record that no input file holds", int((kept < 0).sum()))
                continue
            fates = self.fate[kept]
            lost = kept[(fates >= _DUPLICATE) | np.isin(fates, [_CODE["rejected"], _CODE["cleaned"]])]
            if len(lost):
                told = self.inputs.record(int(lost[0]))
                self.found.add(f"{where} says that {told} was kept, which went itself", len(lost))

    def counts(self) -> NDArray[np.int64]:
        """Records by ``[source, fate]``."""
        table = np.zeros((len(self.inputs.names), len(RECORD_FATES)), np.int64)
        for file, source in enumerate(self.inputs.source):
            if source < 0:
                continue
            fates = self.fate[self.inputs.base[file] : self.inputs.base[file + 1]]
            table[source] += np.bincount(fates % _DUPLICATE, minlength=len(RECORD_FATES))
        return table

    def _numbers(self, batch: pa.RecordBatch, file: str, record: str) -> NDArray[np.int64]:
        columns = (batch.column(n).fill_null(-1).to_numpy(zero_copy_only=False) for n in (file, record))
        files, records = (c.astype(np.int64, copy=False) for c in columns)
        return self.inputs.number(files, records)

    def _check_owner(self, numbers: NDArray[np.int64], sources: NDArray[Any], where: str) -> None:
        held = numbers >= 0
        file = np.searchsorted(self.inputs.base, numbers[held], side="right") - 1
        owner = np.array([*self.inputs.names, ""], object)[self.inputs.source[file]]
        wrong = np.flatnonzero(owner != sources[held])
        if len(wrong):
            told = self.inputs.record(int(numbers[held][wrong[0]]))
            self.found.add(f"{where} gives {told} to {sources[held][wrong[0]]}", len(wrong))


class Uses:
    """How often each piece of each record is emitted; memory grows by 17 bytes a piece."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self._keys: list[NDArray[np.int64]] = []
        self._lengths: list[NDArray[np.int32]] = []
        self._loss: list[NDArray[np.int32]] = []
        self._first: list[NDArray[np.bool_]] = []  # pieces that begin a row

    def add(self, held: Pieces, loss_tokens: NDArray[np.int64]) -> None:
        """Take the pieces of one batch and what each trains; those of unknown records are told elsewhere."""
        numbers = self.inputs.number(held.file, held.record)
        known = (numbers >= 0) & (held.start >= 0)
        self._keys.append(numbers[known] << 31 | held.start[known])  # start < 2**31, records < 2**32
        self._lengths.append(held.length[known].astype(np.int32))
        self._loss.append(loss_tokens[known].astype(np.int32))
        first = np.zeros(len(numbers) + 1, np.bool_)
        first[held.offsets[:-1]] = True
        self._first.append(first[:-1][known])

    def count(self, max_epochs: Iterable[float]) -> UseCounts:
        """Repeats and overlaps over all pieces; ``max_epochs`` stands in the order of sources.

        An infinite cap marks a source whose records give several (scored answers): its pieces cannot be told apart.
        """
        keys = np.concatenate([*self._keys, np.empty(0, np.int64)])
        lengths = np.concatenate([*self._lengths, np.empty(0, np.int32)])
        loss = np.concatenate([*self._loss, np.empty(0, np.int32)])
        begins = np.concatenate([*self._first, np.empty(0, np.bool_)])
        self._keys, self._lengths, self._loss, self._first = [], [], [], []
        order = np.argsort(keys, kind="stable")
        keys, lengths, loss, begins = keys[order], lengths[order], loss[order], begins[order]
        first = np.flatnonzero(np.diff(keys, prepend=-1) != 0)
        repeats = np.diff(np.append(first, len(keys)))
        numbers = keys[first] >> 31
        file = np.searchsorted(self.inputs.base, numbers, side="right") - 1
        limit = np.ceil(np.array([*max_epochs, 0.0])[self.inputs.source[file]] - 1e-9)
        single = np.isfinite(limit)
        start, length = keys[first] & ((1 << 31) - 1), lengths[first]
        follows = numbers[1:] == numbers[:-1]
        overlap = numbers[1:][follows & single[1:] & (start[:-1] + length[:-1] > start[1:])]
        resized = numbers[
            np.unique(np.repeat(np.arange(len(first)), repeats)[lengths != np.repeat(length, repeats)])
        ]
        resized = resized[np.isin(resized, numbers[single])]
        return UseCounts(
            used=np.unique(numbers),
            too_often=numbers[repeats > limit],
            overlapping=np.unique(np.concatenate([overlap, resized])),
            cut=np.unique(np.concatenate([numbers[1:][follows], numbers[start > 0]])),
            most=int(repeats[single].max(initial=0)),
            distinct=self._distinct(file, begins[first], lengths[first], loss[first]),
        )

    def _distinct(
        self,
        file: NDArray[np.int64],
        begins: NDArray[np.bool_],
        lengths: NDArray[np.int32],
        loss: NDArray[np.int32],
    ) -> NDArray[np.int64]:
        source = self.inputs.source[file]
        table = np.zeros((len(self.inputs.names) + 1, 4), np.int64)
        amounts = np.stack([begins, np.ones_like(lengths), lengths, loss], axis=1).astype(np.int64)
        np.add.at(table, source, amounts)
        return table[:-1]


@dataclass(frozen=True)
class UseCounts:
    """What the pieces say, as record numbers."""

    used: NDArray[np.int64]  # sorted, each once
    too_often: NDArray[np.int64]  # above max_epochs
    overlapping: NDArray[np.int64]  # whose pieces share tokens
    cut: NDArray[np.int64]  # that stand in more than one piece
    most: int  # the most often that any piece is emitted
    distinct: NDArray[np.int64]  # [num_sources, 4] rows, records, tokens, loss tokens, each counted once


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as stream:
        for line in stream:
            yield orjson.loads(line)
