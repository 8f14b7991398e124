"""``datamix diff``: what changed between two sets, by recipe, inputs, records, shares and lengths.

Records are matched by the bytes of their input file and their ordinal in it, so that a file that was moved or renamed changes
nothing. A record without a line in ``rejects/``, ``removed/`` or ``validation/`` was used. Cost: one pass over these files,
2 bytes a record, and one over the ``records`` column of ``train/``.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich import box
from rich.table import Table as TerminalTable

from datamix.core.hashing import digest
from datamix.pipeline.progress import table_text
from datamix.reporting.charts import Section, Table
from datamix.reporting.decode import read_manifest, split_shards
from datamix.reporting.page import render_page
from datamix.reporting.verdicts import Verdict
from datamix.reporting.words import Words, percent, unit_words

_NOT_READ, _CHANGED = "not read", "file changed"
_QUANTILES = (0.5, 0.95, 1.0)
_MAX_LINES = 40  # of a table in the terminal


@dataclass(frozen=True)
class Change:
    """One thing with its value in either set; None where a set does not have it."""

    key: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class RecordChange:
    """Records of a source that have another fate: ``used``, ``removed: near``, ``not read`` (no such file), ``file changed``."""

    source: str
    before: str
    after: str
    num_records: int


@dataclass(frozen=True)
class SetDiff:
    """What changed from one set to another; printed as tables."""

    names: tuple[str, str]
    same_rows: bool  # content_sha256 is equal
    num_came: int  # records that are used now and were not
    num_went: int
    recipe: tuple[Change, ...]
    inputs: tuple[Change, ...]
    records: tuple[RecordChange, ...]  # by count
    amounts: tuple[Change, ...]  # sources and units: what was emitted, shares, lengths

    def __str__(self) -> str:
        return "\n\n".join(_terminal(self))

    def html(self) -> str:
        """The same as a page that opens offline."""
        say = Words()
        titles = zip(("recipe", "inputs", "records", "amounts"), _TITLES, strict=True)
        tables = dict(_tables(self))
        shown = [Section(key, title, tables=[tables[title]]) for key, title in titles if title in tables]
        verdict = Verdict("good" if self.same_rows else "look", _summary(self))
        facts = [("before", self.names[0]), ("after", self.names[1])]
        return render_page(" → ".join(self.names), facts, [verdict], shown, [], say)


_TITLES = ("Recipe", "Input files", "Records with another fate", "Sources")


def compare(first: Path, second: Path) -> SetDiff:
    """What changed from the set in ``first`` to the one in ``second``. Raises RecipeError where one is no finished set."""
    manifests = read_manifest(first), read_manifest(second)
    fates = [_record_fates(out, manifest) for out, manifest in zip((first, second), manifests, strict=True)]
    records = _moved_records(manifests, fates)
    came = sum(n for (_, before, after), n in records.items() if after == "used" != before)
    went = sum(n for (_, before, after), n in records.items() if before == "used" != after)
    ordered = sorted(records.items(), key=lambda item: (-item[1], item[0]))
    recipes = [dict(_leaves(_without_long_lists(manifest["recipe"]))) for manifest in manifests]
    files = [
        {e["path"]: f"{e['records']:,} records, {e['sha256'][:12]}" for e in m["inputs"]} for m in manifests
    ]
    amounts = [_amounts(out, manifest) for out, manifest in zip((first, second), manifests, strict=True)]
    digests = [manifest["content_sha256"] for manifest in manifests]
    return SetDiff(
        (str(first), str(second)),
        digests[0] == digests[1] is not None,
        came,
        went,
        tuple(_changes(*recipes)),
        tuple(_changes(*files)),
        tuple(RecordChange(*key, num) for key, num in ordered),
        tuple(_changes(*amounts)),
    )


def _without_long_lists(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with ``exclude``, which may name thousands of records, as one text."""
    entries = recipe.get("exclude")
    return (
        recipe if not entries else recipe | {"exclude": f"{len(entries):,} entries, {digest(entries)[:12]}"}
    )


def _changes(before: dict[str, str], after: dict[str, str]) -> Iterator[Change]:
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) != after.get(key):
            yield Change(key, before.get(key), after.get(key))


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """``{"mix": {"unit": "tokens"}}`` -> ``("mix.unit", "tokens")``; lists of plain values are one leaf."""
    if isinstance(value, dict) and value:
        for key, part in value.items():
            yield from _leaves(part, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        for number, part in enumerate(value):
            yield from _leaves(part, f"{path}[{number}]")
    elif value is not None and value not in ({}, []):
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class _Fates:
    """The fate of each record of each input file, as an index into ``labels``; 0: used."""

    def __init__(self, inputs: list[dict[str, Any]]) -> None:
        self.labels = ["used", _NOT_READ, _CHANGED]
        self.files = [np.zeros(entry["records"], np.int16) for entry in inputs]

    def mark(self, label: str, file: int, records: Any) -> None:
        """Give records of a file a fate."""
        if label not in self.labels:
            self.labels.append(label)
        self.files[file][records] = self.labels.index(label)


def _record_fates(out: Path, manifest: dict[str, Any]) -> _Fates:
    fates, inputs = _Fates(manifest["inputs"]), manifest["inputs"]
    for path in split_shards(out, manifest, "removed"):
        for batch in pq.ParquetFile(path).iter_batches(columns=["file", "record", "fate", "reason"]):
            keys = pc.binary_join_element_wise(batch["fate"], batch["reason"], ": ").fill_null("").to_pylist()
            places: dict[tuple[str, int], list[int]] = defaultdict(list)
            for label, file, record in zip(
                keys, *(batch[n].to_pylist() for n in ("file", "record")), strict=True
            ):
                places[label, file].append(record)
            for (label, file), records in places.items():
                fates.mark(label, file, records)
    index = {(entry["source"], entry["path"]): number for number, entry in enumerate(inputs)}
    for entry in manifest["outputs"]:
        if entry["path"].startswith("rejects/"):
            with (out / entry["path"]).open("rb") as stream:
                for line in map(orjson.loads, stream):
                    fates.mark(
                        f"rejected: {line['reason']}", index[line["source"], line["file"]], line["record"]
                    )
    for path in split_shards(out, manifest, "validation"):
        for batch in pq.ParquetFile(path).iter_batches(columns=["records"]):
            for part in pa.Array.to_pylist(batch["records"].flatten()):
                fates.mark("validation", part["file"], part["record"])
    return fates


def _moved_records(
    manifests: tuple[dict[str, Any], dict[str, Any]], fates: list[_Fates]
) -> Counter[tuple[str, str, str]]:
    """Records by source, fate before and fate after, where these differ; files are matched by source and content.

    Nothing in a set shows which records of a file with other bytes are the same: they are ``file changed`` in the other set.
    """
    keys = [[(e["source"], e["sha256"]) for e in manifest["inputs"]] for manifest in manifests]
    paths = [[(e["source"], e["path"]) for e in manifest["inputs"]] for manifest in manifests]
    unmatched: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, key in enumerate(keys[1]):
        unmatched[key].append(number)
    pairs: list[tuple[int | None, int | None]] = [
        (number, unmatched[key].pop(0) if unmatched[key] else None) for number, key in enumerate(keys[0])
    ]
    pairs += [(None, number) for numbers in unmatched.values() for number in numbers]
    moved: Counter[tuple[str, str, str]] = Counter()
    for pair in pairs:
        known = next(side for side in (0, 1) if pair[side] is not None)
        source, path = paths[known][pair[known] or 0]
        absent = _CHANGED if (source, path) in paths[1 - known] else _NOT_READ
        sides = [
            f.files[n] if n is not None else np.zeros(0, np.int16) for f, n in zip(fates, pair, strict=True)
        ]
        if None not in pair:
            absent = _NOT_READ  # of a sample, which is the head of each file
        codes = np.full((2, max(map(len, sides))), fates[0].labels.index(absent), np.int16)
        for row, side in zip(codes, sides, strict=True):
            row[: len(side)] = side
        different, counts = np.unique(codes, axis=1, return_counts=True)
        for before, after, count in zip(*different.tolist(), counts.tolist(), strict=True):
            labels = fates[0].labels[before], fates[1].labels[after]
            if labels[0] != labels[1]:
                moved[source, *labels] += count
    return moved


def _amounts(out: Path, manifest: dict[str, Any]) -> dict[str, str]:
    """What each source has in the emitted set: shares, counts, and the lengths of its records."""
    unit, amounts = manifest["mixture"]["unit"], {}
    lengths: dict[str, list[NDArray[Any]]] = defaultdict(list)
    for path in split_shards(out, manifest):
        for batch in pq.ParquetFile(path).iter_batches(columns=["source", "records"]):
            column = batch["records"]
            parents = pc.list_parent_indices(column)
            sources = pc.take(batch["source"], parents).to_numpy(zero_copy_only=False)
            tokens = column.flatten().field("length").to_numpy(zero_copy_only=False)
            for name in set(sources):
                lengths[name].append(tokens[sources == name])
    for name, source in manifest["sources"].items():
        share = source["share"]
        amounts[f"{name}: share asked"] = percent(share["asked"])
        amounts[f"{name}: share of {unit_words(unit)}"] = percent(share[unit])
        for key, value in source["emitted"].items():
            amounts[f"{name}: {unit_words(key)} emitted"] = f"{value:,}"
        amounts[f"{name}: epochs"] = f"{source['epochs']:.2f}"
        if lengths[name]:
            quantiles = np.quantile(np.concatenate(lengths[name]), _QUANTILES)
            text = "{:,.0f} / {:,.0f} / {:,.0f}".format(*quantiles)
            amounts[f"{name}: tokens a record (median / 95 % / longest)"] = text
    return amounts


def _summary(diff: SetDiff) -> str:
    if diff.same_rows and not diff.records:
        return "The rows of both sets are equal (content_sha256)."
    rows = "equal" if diff.same_rows else "different"
    return (
        f"Rows are {rows}. {diff.num_came:,} records came, {diff.num_went:,} went; fates are by reason below."
    )


def _tables(diff: SetDiff) -> Iterator[tuple[str, Table]]:
    """Each part that has changes, as rows: thing, before, after."""
    for title, changes in zip(_TITLES, (diff.recipe, diff.inputs, None, diff.amounts), strict=True):
        if changes is None:
            rows = [[r.source, r.before, r.after, f"{r.num_records:,}"] for r in diff.records]
            head = ["source", "before", "after", "records"]
        else:
            rows = [[c.key, *("-" if v is None else v for v in (c.before, c.after))] for c in changes]
            head = ["", "before", "after"]
        if rows:
            yield title, Table(head, rows, words=(0, 1, 2))


def _terminal(diff: SetDiff) -> Iterator[str]:
    yield f"{diff.names[0]} -> {diff.names[1]}\n{_summary(diff)}"
    for title, table in _tables(diff):
        shown = TerminalTable(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
        for number, name in enumerate(table.head):
            shown.add_column(name, justify="left" if number in table.words else "right", overflow="fold")
        for row in table.rows[:_MAX_LINES]:
            shown.add_row(*row)
        more = len(table.rows) - _MAX_LINES
        yield table_text(shown) + (f"\nand {more:,} more: see --html" if more > 0 else "")
