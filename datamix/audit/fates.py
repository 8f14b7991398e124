"""The ledger derived again: one fate for every record that was read, from the emitted ids and the audit files alone.

The idea: an input file's records have ordinals, so all records of a set are one array of bytes. Each line of
``rejects/`` and ``removed/`` and each id in ``validation/`` and ``train/`` writes its fate there; a place that nobody
wrote was lost silently, a place written twice was counted twice.

Cost: one byte a record, and 17 bytes a piece emitted for the repeats.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datamix.audit.findings import Check, Findings, Unchecked, first_line
from datamix.audit.row_laws import Pieces
from datamix.core.arrays import offsets_from_lengths
from datamix.core.contracts import UNITS

RECORD_FATES = ("none", "rejected", "cleaned", "removed", "dropped", "validation", "used", "unused")
AMOUNTS = ("rows", *UNITS)
_CODE = {name: code for code, name in enumerate(RECORD_FATES)}
DUPLICATE = 16  # added to the code of a record removed in favour of another
_IN_REMOVED = ("cleaned", "removed", "dropped", "unused")  # fates that removed/ lists
_REASONS = {fate: f"{fate}_by" for fate in ("rejected", *_IN_REMOVED)}


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
        names, entries = tuple(manifest["sources"]), manifest["inputs"]
        index = {name: number for number, name in enumerate(names)}
        source = np.array([index.get(e["source"], -1) for e in entries], np.int64)
        base = offsets_from_lengths([e["records"] for e in entries])
        return Inputs(source, base, names, tuple(e["path"] for e in entries))

    def number(self, file: NDArray[np.int64], record: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of each record; -1 where no input file holds it."""
        known = (file >= 0) & (file < len(self.source))
        safe = np.where(known, file, 0)
        known &= (record >= 0) & (record < self.base[safe + 1] - self.base[safe])
        return np.where(known, self.base[safe] + record, -1)

    def file(self, number: NDArray[np.int64]) -> NDArray[np.int64]:
        """The file of each record."""
        return np.searchsorted(self.base, number, side="right") - 1

    def record(self, number: int) -> str:
        """A record for a person: ``record 12 of data/a.jsonl``."""
        file = int(self.file(np.array([number]))[0])
        return f"record {number - int(self.base[file]):,} of {self.paths[file]}"


class Ledger:
    """The fate of every record, by the files."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.fate = np.zeros(int(inputs.base[-1]), np.uint8)
        self.reasons: dict[str, Counter[tuple[str, str]]] = {key: Counter() for key in _REASONS.values()}
        self.findings = Findings("ledger")
        self.left_over: set[int] = set()  # numbers of records that could have been used
        unknown = np.flatnonzero(inputs.source < 0)
        text = "belongs to a source that the manifest does not know"
        self.findings.add_first(unknown, lambda file: f"{inputs.paths[file]} {text}")

    def mark(self, fate: str, numbers: NDArray[np.int64], where: str) -> None:
        """Give records their fate; one that has another already, or this one twice, is a violation."""
        unknown = int((numbers < 0).sum())
        self.findings.add(f"{where} names a record that no input file holds", unknown)
        unique, counts = np.unique(numbers[numbers >= 0], return_counts=True)

        def taken(number: int) -> str:
            before = RECORD_FATES[self.fate[number] % DUPLICATE]
            return f"{self.inputs.record(number)} is {before} and, in {where}, {fate} too"

        self.findings.add_first(unique[self.fate[unique] != 0], taken)
        self.findings.add_first(unique[counts > 1], lambda n: f"{where} names {self.inputs.record(n)} twice")
        self.fate[unique] = _CODE[fate]

    def read_files(self, out: Path, removed: list[str], rejects: list[str]) -> None:
        """Take the files of ``removed/`` and ``rejects/``; one that is damaged or of another shape is a violation."""
        steps: list[tuple[str, Callable[[], None]]] = [
            *((name, partial(self.read_removed, out / name, name)) for name in removed),
            *((name, partial(self.read_rejects, out / name, name)) for name in rejects),
            *((name, partial(self.check_kept, out / name, name)) for name in removed),
        ]
        for name, step in steps:
            try:
                step()
            except (OSError, ValueError, KeyError, TypeError) as error:
                self.findings.add(f"{name} cannot be read: {first_line(error)}")

    def read_rejects(self, path: Path, where: str) -> None:
        """Take one file of ``rejects/``."""
        source, inputs = path.stem, self.inputs
        index = {p: i for i, p in enumerate(inputs.paths) if inputs.names[inputs.source[i]] == source}
        files: list[int] = []
        records: list[int] = []
        with path.open("rb") as stream:
            for line in map(orjson.loads, stream):
                files.append(index.get(line["file"], -1) if line["source"] == source else -1)
                records.append(line["record"])
                self.reasons["rejected_by"][source, line["reason"]] += 1
        self.mark("rejected", inputs.number(np.array(files, np.int64), np.array(records, np.int64)), where)

    def read_removed(self, path: Path, where: str) -> None:
        """Take one file of ``removed/``."""
        columns = ["source", "file", "record", "fate", "reason"]
        for batch in pq.ParquetFile(path).iter_batches(columns=columns):
            numbers = self._numbers(batch, "file", "record")
            sources, fates, reasons = (
                np.array(batch.column(name).to_pylist(), object) for name in ("source", "fate", "reason")
            )
            for fate in sorted(set(fates)):
                if fate in _IN_REMOVED:
                    self.mark(fate, numbers[fates == fate], where)
                else:
                    self.findings.add(f"{where} knows a fate {fate!r}", int((fates == fate).sum()))
            known = numbers >= 0
            owner = np.array([*self.inputs.names, ""], object)
            owner = owner[self.inputs.source[self.inputs.file(numbers[known])]]
            wrong = np.flatnonzero(known)[owner != sources[known]]
            if len(wrong):
                record = self.inputs.record(int(numbers[wrong[0]]))
                self.findings.add(f"{where} gives {record} to {sources[wrong[0]]}", len(wrong))
            duplicate = known & np.isin(reasons, ["exact", "near"]) & (fates == "removed")
            self.fate[numbers[duplicate]] |= DUPLICATE
            left = numbers[known & (reasons == "not_needed") & (fates == "unused")]
            self.left_over.update(left.tolist())
            for fate, source, reason in zip(fates, sources, reasons, strict=True):
                if fate in _REASONS:
                    self.reasons[_REASONS[fate]][source, reason] += 1

    def check_kept(self, path: Path, where: str) -> None:
        """Whatever a duplicate was removed for must itself have been kept by the deduplication."""
        for batch in pq.ParquetFile(path).iter_batches(columns=["kept_file", "kept_record"]):
            kept = self._numbers(batch, "kept_file", "kept_record")
            kept = kept[np.array(batch.column("kept_file").is_valid())]
            if (kept < 0).any():
                unknown = int((kept < 0).sum())
                self.findings.add(f"{where} names a kept record that no input file holds", unknown)
                continue
            fates = self.fate[kept]
            lost = kept[(fates >= DUPLICATE) | np.isin(fates, [_CODE["rejected"], _CODE["cleaned"]])]
            self.findings.add_first(
                lost,
                lambda n: f"{where} says that {self.inputs.record(n)} was kept, which was removed itself",
            )

    def _numbers(self, batch: pa.RecordBatch, file: str, record: str) -> NDArray[np.int64]:
        columns = (batch.column(n).fill_null(-1).to_numpy(zero_copy_only=False) for n in (file, record))
        return self.inputs.number(*(c.astype(np.int64, copy=False) for c in columns))

    def counts(self) -> NDArray[np.int64]:
        """Records by ``[source, fate]``."""
        table = np.zeros((len(self.inputs.names), len(RECORD_FATES)), np.int64)
        for file, source in enumerate(self.inputs.source):
            if source >= 0:
                fates = self.fate[self.inputs.base[file] : self.inputs.base[file + 1]]
                table[source] += np.bincount(fates % DUPLICATE, minlength=len(RECORD_FATES))
        return table

    def check(self, manifest: dict[str, Any]) -> Check:
        """Every record has a fate, and the manifest's counts of records by fate and reason are those of the files."""
        findings, counts = self.findings, self.counts()
        lost = np.flatnonzero(self.fate == 0)
        text = "was read and has no line in rejects/ or removed/"
        findings.add_first(lost, lambda number: f"{self.inputs.record(number)} {text}")
        for index, name in enumerate(self.inputs.names):
            claims = manifest["sources"][name]
            for code, fate in list(enumerate(RECORD_FATES))[1:]:
                findings.expect(f"{name}: records {fate}", claims["records"][fate], int(counts[index, code]))
            read = sum(e["records"] for e in manifest["inputs"] if e["source"] == name)
            findings.expect(f"{name}: records read", claims["records"]["read"], read)
            for key, reasons in self.reasons.items():
                counted = {reason: n for (source, reason), n in reasons.items() if source == name}
                claimed = claims.get(key, {})
                for reason in sorted({*counted, *claimed}):
                    what = f"{name}: {key} {reason}"
                    findings.expect(what, claimed.get(reason, 0), counted.get(reason, 0))
        total = counts.sum(axis=0)
        parts = " + ".join(f"{int(total[code]):,} {fate}" for fate, code in _CODE.items() if code)
        return findings.check(f"{len(self.fate):,} records read = {parts}; each has its line or its row")


class Uses:
    """How often each piece of each record is emitted; memory grows by 17 bytes a piece."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self._keys = [np.empty(0, np.int64)]
        self._lengths = [np.empty(0, np.int32)]
        self._loss = [np.empty(0, np.int32)]
        self._first = [np.empty(0, np.bool_)]  # pieces that begin a row

    def add(self, parts: Pieces, loss_tokens: NDArray[np.int64]) -> None:
        """Take the pieces of one batch and what each trains; those of unknown records are reported elsewhere."""
        numbers = self.inputs.number(parts.file, parts.record)
        known = (numbers >= 0) & (parts.start >= 0)
        self._keys.append(numbers[known] << 31 | parts.start[known])  # start < 2**31, records < 2**32
        self._lengths.append(parts.length[known].astype(np.int32))
        self._loss.append(loss_tokens[known].astype(np.int32))
        first = np.zeros(len(numbers) + 1, np.bool_)
        first[parts.offsets[:-1]] = True
        self._first.append(first[:-1][known])

    def count(self, max_epochs: Iterable[float]) -> UseCounts:
        """Repeats and overlaps over all pieces; ``max_epochs`` in the order of sources.

        An infinite cap marks a source whose records give several (scored answers): its pieces cannot be distinguished.
        """
        keys, lengths = np.concatenate(self._keys), np.concatenate(self._lengths)
        loss, begins = np.concatenate(self._loss), np.concatenate(self._first)
        order = np.argsort(keys, kind="stable")
        keys, lengths, loss, begins = keys[order], lengths[order], loss[order], begins[order]
        first = np.flatnonzero(np.diff(keys, prepend=-1) != 0)
        repeats = np.diff(np.append(first, len(keys)))
        numbers, start, length = keys[first] >> 31, keys[first] & ((1 << 31) - 1), lengths[first]
        source = self.inputs.source[self.inputs.file(numbers)]
        limit = np.ceil(np.array([*max_epochs, 0.0])[source] - 1e-9)
        single = np.isfinite(limit)
        follows = numbers[1:] == numbers[:-1]
        overlap = numbers[1:][follows & single[1:] & (start[:-1] + length[:-1] > start[1:])]
        piece = np.repeat(np.arange(len(first)), repeats)
        resized = numbers[np.unique(piece[lengths != length[piece]])]
        resized = resized[np.isin(resized, numbers[single])]
        distinct = np.zeros((len(self.inputs.names) + 1, len(AMOUNTS)), np.int64)
        amounts = np.stack([begins[first], np.ones_like(length), length, loss[first]], axis=1)
        np.add.at(distinct, source, amounts.astype(np.int64))
        return UseCounts(
            used=np.unique(numbers),
            too_often=numbers[repeats > limit],
            overlapping=np.unique(np.concatenate([overlap, resized])),
            cut=np.unique(np.concatenate([numbers[1:][follows], numbers[start > 0]])),
            most=int(repeats[single].max(initial=0)),
            distinct=distinct[:-1],
        )


@dataclass(frozen=True)
class UseCounts:
    """What the pieces show, as record numbers."""

    used: NDArray[np.int64]  # sorted, each once
    too_often: NDArray[np.int64]  # above max_epochs
    overlapping: NDArray[np.int64]  # whose pieces share tokens
    cut: NDArray[np.int64]  # that are in more than one piece
    most: int  # the most often that any piece is emitted
    distinct: NDArray[np.int64]  # [num_sources, AMOUNTS] each piece counted once


def check_available(manifest: dict[str, Any], uses: UseCounts, findings: Findings) -> list[Unchecked]:
    """What each source had available, as far as rows and ledger show it; returned is what could not be derived.

    Passes over a source are whole: once any of its rows came twice, or none of its records was left over, all of it was
    emitted, and its distinct pieces add up to ``available``. Else the pieces are a lower bound. Of records that give several
    rows (scored answers) the pieces cannot be distinguished.
    """
    left_open: list[Unchecked] = []
    packed = manifest["packing"]["strategy"] != "none"
    exact = () if manifest["kind"] == "pretrain" else ("records",) if packed else ("rows", "records")
    for (name, source), distinct in zip(manifest["sources"].items(), uses.distinct.tolist(), strict=True):
        available, emitted, used = source["available"], source["emitted"], source["records"]["used"]
        pool, several = live_records(source), gives_several(manifest, source)
        places = {unit: f"sources.{name}.available.{unit}" for unit in AMOUNTS}
        if several and pool == used == emitted["records"]:
            findings.expect(f"{name}: available records", available["records"], pool)
            continue
        if manifest.get("virtual"):
            left_open.append(Unchecked(f"available of {name}", tuple(places.values())))
            continue
        if several and emitted["rows"]:
            text = f"available of {name}, and max_epochs: its records give several rows"
            max_epochs = f"recipe.sources.{name}.max_epochs"
            left_open.append(Unchecked(text, (*places.values(), max_epochs)))
            continue
        for unit in exact:
            findings.expect(f"{name}: available {unit}", available[unit], pool)
        whole = emitted["rows"] > distinct[0] or (exact and pool == used)
        for unit, amount in zip(AMOUNTS, distinct, strict=True):
            if whole:
                findings.expect(f"{name}: available {unit}", available[unit], amount)
            elif available[unit] < amount:
                text = f"is at least {amount:,}, the manifest says {available[unit]:,}"
                findings.add(f"{name}: available {unit} {text}")
        if not whole:
            rest = [unit for unit in AMOUNTS if unit not in exact]
            text = f"available {', '.join(rest)} of {name} beyond what was emitted"
            left_open.append(Unchecked(text, tuple(places[unit] for unit in rest)))
    return left_open


def live_records(source: dict[str, Any]) -> int:
    """Records of a source that were used or could have been."""
    records, unused_by = source["records"], source.get("unused_by")
    return int(records["used"] + (records["unused"] if unused_by is None else unused_by.get("not_needed", 0)))


def gives_several(manifest: dict[str, Any], source: dict[str, Any]) -> bool:
    """Whether, by the manifest, records of a source give several rows each (scored answers)."""
    return bool(source["available"]["records"] > live_records(source) and manifest["kind"] != "pretrain")
