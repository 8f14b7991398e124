"""The report's sections: each takes the manifest and what was gathered, and gives tables, drawings and words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix.audit.prefix import read_stages
from datamix.core.contracts import UNITS
from datamix.reporting import charts
from datamix.reporting.decode import (
    DecodedDocument,
    Decoder,
    TextSpan,
    documents,
    read_row,
    split_shards,
)
from datamix.reporting.gather import LENGTH_EDGES, Picture
from datamix.reporting.verdicts import SHOWN_FATES, percent, plural, unit_words

_MAX_ROWS = 6  # example rows on the page
_MAX_TOKENS = 600  # shown of each
_MAX_INPUTS = 40  # files listed
_EXTERNAL = "other sets"  # the column for records of earlier sets and evals
_AMOUNTS = ("rows", *UNITS)


@dataclass(frozen=True)
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    foot: Sequence[str] = ()


@dataclass(frozen=True)
class Legend:
    name: str
    colour: int  # of the page's series, from 1


@dataclass(frozen=True)
class Example:
    """An emitted row as the page shows it."""

    title: str
    documents: Sequence[DecodedDocument]
    more: str = ""


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    lead: str = ""
    legend: Sequence[Legend] = ()
    charts: Sequence[str] = ()
    tables: Sequence[Table] = ()
    rows: Sequence[Example] = ()


def sections(out: Path, manifest: dict[str, Any], picture: Picture) -> list[Section]:
    """Every section that has something to show."""
    several = [_duplicates(picture), _order(manifest, picture), _lengths(manifest, picture)]
    shown = [_shares(manifest), *_records(manifest), *(section for section in several if section)]
    per_source = max(1, _MAX_ROWS // 2 // max(1, sum(map(bool, picture.first_rows.values()))))
    numbers = sorted({n for rows in picture.first_rows.values() for n in rows[:per_source]})[:_MAX_ROWS]
    if numbers and (out / "tokenizer" / "tokenizer.json").is_file():
        lead = "The first rows of each source, decoded from their ids. What is coloured is trained."
        rows = row_section(out, manifest, numbers, _MAX_TOKENS)
        shown.append(replace(rows, title="A few rows", lead=lead))
    return [*shown, _provenance(manifest)]


def _shares(manifest: dict[str, Any]) -> Section:
    unit = manifest["mixture"]["unit"]
    weighed = ((n, s) for n, s in manifest["sources"].items() if s["share"]["asked"] or s["emitted"]["rows"])
    sources = dict(weighed)  # a validation file is a source that nothing is asked of
    rows = []
    for name, source in sources.items():
        shares = (percent(source["share"][key]) for key in ("asked", *UNITS))
        rows.append([name, *shares, *_counts(source["emitted"]), f"{source['epochs']:.2f}"])
    total = {u: sum(s["emitted"][u] for s in sources.values()) for u in _AMOUNTS}
    asked = [s["share"]["asked"] for s in sources.values()]
    foot = ["all", percent(sum(asked)), *([percent(1.0)] * 3), *_counts(total), ""]
    head = ["source", "asked", *(f"of {unit_words(u)}" for u in UNITS), *map(unit_words, _AMOUNTS), "epochs"]
    bars = [charts.Bar(n, tuple(s["share"][u] for u in UNITS)) for n, s in sources.items()]
    drawing = charts.share_bars(bars, asked, UNITS, unit)
    lead = f"Weights were asked in {unit_words(unit)}; the tick marks what was asked. In another unit the shares differ."
    return Section("shares", "Shares", lead, charts=[drawing], tables=[Table(head, rows, foot)])


def _counts(emitted: dict[str, int]) -> list[str]:
    return [f"{emitted[u]:,}" for u in _AMOUNTS]


def _records(manifest: dict[str, Any]) -> Iterator[Section]:
    """From records read to rows emitted, each step's loss taken off; then why: a line a reason, a column a source."""
    sources = manifest["sources"]
    steps = ("read", "rejected", "cleaned", "dropped", "removed", "validation", "unused", "used")
    counts = [[*(s["records"][step] for step in steps), s["emitted"]["rows"]] for s in sources.values()]
    rows = [[name, *(f"{n:,}" for n in row)] for name, row in zip(sources, counts, strict=True)]
    head = ["source", "read", *(f"- {step}" for step in steps[1:-1]), "= used", "rows"]
    foot = ["all", *(f"{sum(column):,}" for column in zip(*counts, strict=True))]
    fates = [f for f in SHOWN_FATES if any(s["records"][f] for s in sources.values())]
    legend = [Legend(fate, charts.FATE_COLOURS[fate]) for fate in fates]
    bars = [charts.Bar(n, tuple(float(s["records"][f]) for f in SHOWN_FATES)) for n, s in sources.items()]
    lead = "Every record that was read has one fate, and those that are not used have their line in rejects/ or removed/."
    drawn, tables = [charts.fate_bars(bars, SHOWN_FATES)], [Table(head, rows, foot)]
    yield Section("funnel", "From records read to rows", lead, legend, drawn, tables)
    reasons = []
    for fate in ("rejected", "cleaned", "dropped", "removed", "unused"):
        by_source = [s.get(f"{fate}_by", {}) for s in sources.values()]
        for reason in sorted({r for by in by_source for r, n in by.items() if n}):
            numbers = [by.get(reason, 0) for by in by_source]
            label = f"{fate}: {reason.replace('_', ' ')}"
            reasons.append([label, *(f"{n:,}" if n else "" for n in numbers), f"{sum(numbers):,}"])
    if reasons:
        lead = "Rejected records are in rejects/ with their original bytes, file and line; the others in removed/."
        table = Table(["reason", *sources, "all"], reasons)
        yield Section("reasons", "Why records are not used", lead, tables=[table])


def _duplicates(picture: Picture) -> Section | None:
    kinds = [k for k in ("exact", "near", "leaked") if any(r == k for r, _, _ in picture.duplicates)]
    if not kinds:
        return None
    pairs: Counter[tuple[str, str]] = Counter()
    for (kind, source, keeper), count in picture.duplicates.items():
        if kind in kinds:
            pairs[source, keeper if keeper in picture.sources else _EXTERNAL] += count
    rows = [s for s in picture.sources if any(s == source for source, _ in pairs)]
    columns = [s for s in (*picture.sources, _EXTERNAL) if any(s == keeper for _, keeper in pairs)]
    counts = np.array([[pairs[row, column] for column in columns] for row in rows], np.int64)
    of_kind = {k: sum(n for (r, _, _), n in picture.duplicates.items() if r == k) for k in kinds}
    totals = ", ".join(f"{number:,} {kind}" for kind, number in of_kind.items())
    lead = f"Removed records of the source on the left, by the source whose copy was kept ({totals})."
    drawing = charts.duplicate_matrix(rows, columns, counts)
    return Section("duplicates", "Duplicates between sources", lead, charts=[drawing])


def _order(manifest: dict[str, Any], picture: Picture) -> Section | None:
    filled = np.flatnonzero(picture.windows.sum(axis=1) > 0)
    if len(filled) < 2:
        return None
    mixture = manifest["mixture"]
    groups, legend = _series(picture)
    windows = picture.windows[filled] @ groups
    shares = windows / windows.sum(axis=1, keepdims=True)
    stages, stage = read_stages(mixture, picture.sources), picture.window_stage[filled]
    asked = np.zeros((len(stage), len(picture.sources)))  # a ramp is followed over the windows of its stage
    for index in np.unique(stage):
        here = np.flatnonzero(stage == index)
        part = ((np.arange(len(here)) + 0.5) / len(here))[:, None]
        asked[here] = stages[index].first * (1 - part) + stages[index].last * part
    num_rows = np.array([stage["rows"] for stage in mixture["stages"]])
    begins = ((np.cumsum(num_rows) - num_rows) / max(1, num_rows.sum())).tolist()
    places, lines = (filled + 0.5) / len(picture.windows), groups.argmax(axis=0)
    names = [stage["name"] for stage in mixture["stages"]]
    drawn = [
        charts.share_lines(places, shares, asked @ groups, list(zip(names, begins, strict=True))),
        charts.deviation_lines(places, picture.off[filled][:, lines], mixture["bound"]),
    ]
    unit = unit_words(mixture["unit"])
    lead = (
        f"Share of {unit} in {len(filled)} windows along the training order, with what was asked dotted. Below, the farthest "
        f"that each source is from its target at that point, in {unit}."
    )
    return Section("order", "Along the training order", lead, legend, drawn)


def _series(picture: Picture) -> tuple[NDArray[np.float64], list[Legend]]:
    """Sources as lines: the largest by themselves, the others as one. ``[num_sources, num_lines]`` and their names."""
    order = np.argsort(-picture.windows.sum(axis=0), kind="stable")
    order = order[picture.windows.sum(axis=0)[order] > 0]
    alone = np.sort(order[: charts.MAX_SERIES]) if len(order) > charts.MAX_SERIES + 1 else np.sort(order)
    rest = [int(s) for s in order if s not in alone]
    groups = np.zeros((len(picture.sources), len(alone) + bool(rest)))
    groups[alone, np.arange(len(alone))] = 1
    legend = [Legend(picture.sources[s], i + 1) for i, s in enumerate(alone)]
    if rest:
        groups[rest, -1] = 1
        legend.append(Legend(f"{len(rest)} others", charts.MAX_SERIES + 1))
    return groups, legend


def _lengths(manifest: dict[str, Any], picture: Picture) -> Section | None:
    if not picture.lengths.sum():
        return None
    groups, legend = _series(picture)
    packing, lengths = manifest["packing"], (picture.lengths.T @ groups).T
    limit, fill = packing["max_length"], packing["fill"]
    drawn = [charts.length_lines(lengths, LENGTH_EDGES, limit)]
    lead = "Tokens of each emitted record, as a share of its source's records."
    if limit and picture.fills.sum() and fill is not None:
        drawn.append(charts.fill_bars(picture.fills))
        lead += f" Below, how full rows are: {percent(fill, 1)} in all ({packing['strategy']})."
    return Section("lengths", "Lengths and packing", lead, legend, drawn)


def row_section(
    out: Path, manifest: dict[str, Any], numbers: Iterable[int], max_tokens: int = 1 << 31
) -> Section:
    """Some rows decoded, at most ``max_tokens`` of each; numbers past the last row are passed over."""
    shards, decoder, rows = split_shards(out, manifest), Decoder(out), []
    for number in numbers:
        row = read_row(shards, number)
        if row is None:
            continue
        left, hidden, shown = max_tokens, 0, []
        for document in documents(row, manifest["inputs"], decoder):
            spans: list[TextSpan] = []
            for span in document.spans:
                num = min(span.num_tokens, left)
                if num == span.num_tokens:
                    spans.append(span)
                elif num:
                    text = span.text[: len(span.text) * num // span.num_tokens] + " …"
                    spans.append(TextSpan(text, span.trained, num))
                left, hidden = left - num, hidden + span.num_tokens - num
            if spans:
                shown.append(replace(document, spans=tuple(spans)))
        more = f"and {plural(hidden, 'token')} more: datamix inspect shows the whole row" if hidden else ""
        rows.append(Example(f"Row {number:,} · {row['source']} · stage {row['stage']}", shown, more))
    return Section("rows", "Rows", "Decoded from their ids. What is coloured is trained.", rows=rows)


def _provenance(manifest: dict[str, Any]) -> Section:
    inputs = [
        [
            e["path"],
            e["source"],
            f"{e['records']:,}",
            f"{e['bytes']:,}",
            e["encoding"] or "",
            e["sha256"][:12],
        ]
        for e in manifest["inputs"][:_MAX_INPUTS]
    ]
    more = len(manifest["inputs"]) - len(inputs)
    foot = [f"and {plural(more, 'file')} more in manifest.json", *[""] * 5] if more else []
    tokenizer = manifest["tokenizer"]
    name = f"{PurePath(tokenizer['name']).name}, {tokenizer['vocab_size']:,} ids"
    facts = [
        ["tokenizer", f"{name}, sha256 {tokenizer['sha256'][:12]}"],
        ["recipe", f"sha256 {manifest['recipe_sha256'][:12]}, seed {manifest['seed']}"],
        ["made with", ", ".join(f"{n} {v}" for n, v in sorted(manifest["packages"].items()))],
    ]
    files = Table(["file", "source", "records", "bytes", "encoding", "sha256"], inputs, foot)
    return Section("origin", "Where it came from", tables=[files, Table(["", ""], facts)])
