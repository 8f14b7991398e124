"""The report's sections: each takes the manifest and what was gathered, and gives tables, drawings and words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix.audit.prefix import read_stages
from datamix.core.contracts import UNITS
from datamix.reporting import charts
from datamix.reporting.decode import DecodedDocument, Decoder, TextSpan, documents, read_row, train_shards
from datamix.reporting.gather import LENGTH_EDGES, Picture
from datamix.reporting.verdicts import SHOWN_FATES, percent, plural, unit_words

_MAX_ROWS = 6  # example rows on the page
_MAX_TOKENS = 600  # shown of each
_EXTERNAL = "other sets"  # what records of earlier sets and evals are gathered under


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
    """An emitted row as it is shown."""

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
    rows: Sequence[Example] = field(default=())


def sections(out: Path, manifest: dict[str, Any], picture: Picture) -> list[Section]:
    """Every section that has something to show."""
    made = [
        _shares(manifest),
        _funnel(manifest),
        _losses(manifest),
        _duplicates(picture),
        _order(manifest, picture),
        _lengths(manifest, picture),
        _examples(out, manifest, picture),
        _provenance(manifest),
    ]
    return [section for section in made if section is not None]


def _shares(manifest: dict[str, Any]) -> Section:
    unit = manifest["mixture"]["unit"]
    weighed = ((n, s) for n, s in manifest["sources"].items() if s["share"]["asked"] or s["emitted"]["rows"])
    sources = dict(weighed)  # a validation file is a source that nothing is asked of
    bars = [charts.Bar(n, tuple(s["share"][u] for u in UNITS)) for n, s in sources.items()]
    asked = [s["share"]["asked"] for s in sources.values()]
    rows = [
        [
            name,
            percent(s["share"]["asked"]),
            *(percent(s["share"][u]) for u in UNITS),
            *_amounts(s["emitted"]),
            f"{s['epochs']:.2f}",
        ]
        for name, s in sources.items()
    ]
    total = {u: sum(s["emitted"][u] for s in sources.values()) for u in ("rows", *UNITS)}
    foot = ["all", percent(sum(asked)), *([percent(1.0)] * 3), *_amounts(total), ""]
    head = [
        "source",
        "asked",
        "of records",
        "of tokens",
        "of loss tokens",
        "rows",
        "records",
        "tokens",
        "loss tokens",
        "epochs",
    ]
    lead = f"Weights were asked in {unit_words(unit)}; the tick marks what was asked. In another unit the shares differ."
    return Section(
        "shares",
        "Shares",
        lead,
        charts=[charts.share_bars(bars, asked, UNITS, unit)],
        tables=[Table(head, rows, foot)],
    )


def _amounts(held: dict[str, int]) -> list[str]:
    return [f"{held[u]:,}" for u in ("rows", *UNITS)]


def _funnel(manifest: dict[str, Any]) -> Section:
    """From records read to rows emitted, each step's loss taken off."""
    sources = manifest["sources"]
    bars = [charts.Bar(n, tuple(float(s["records"][f]) for f in SHOWN_FATES)) for n, s in sources.items()]
    shown = [f for f in SHOWN_FATES if any(s["records"][f] for s in sources.values())]
    head = [
        "source",
        "read",
        "- rejected",
        "- cleaned",
        "- dropped",
        "- removed",
        "- validation",
        "- unused",
        "= used",
        "rows",
    ]
    steps = ("read", "rejected", "cleaned", "dropped", "removed", "validation", "unused", "used")
    rows = [
        [n, *(f"{s['records'][f]:,}" for f in steps), f"{s['emitted']['rows']:,}"] for n, s in sources.items()
    ]
    sums = [f"{sum(s['records'][f] for s in sources.values()):,}" for f in steps]
    foot = ["all", *sums, f"{sum(s['emitted']['rows'] for s in sources.values()):,}"]
    legend = [Legend(fate, charts.FATE_COLOURS[fate]) for fate in shown]
    return Section(
        "funnel",
        "From records read to rows",
        "Every record that was read has one fate, and those that are not used have their line in rejects/ or removed/.",
        legend,
        [charts.fate_bars(bars, SHOWN_FATES)],
        [Table(head, rows, foot)],
    )


def _losses(manifest: dict[str, Any]) -> Section | None:
    """Why records were lost: one line a reason, one column a source."""
    sources = manifest["sources"]
    rows = []
    for fate in ("rejected", "cleaned", "dropped", "removed", "unused"):
        counts = {n: s.get(f"{fate}_by", {}) for n, s in sources.items()}
        for reason in sorted({r for c in counts.values() for r, n in c.items() if n}):
            found = [counts[n].get(reason, 0) for n in sources]
            rows.append(
                [
                    f"{fate}: {reason.replace('_', ' ')}",
                    *(f"{n:,}" if n else "" for n in found),
                    f"{sum(found):,}",
                ]
            )
    if not rows:
        return None
    lead = (
        "Rejected records stand in rejects/ with their original bytes, file and line; the others in removed/."
    )
    return Section(
        "reasons", "Why records are not used", lead, tables=[Table(["reason", *sources, "all"], rows)]
    )


def _duplicates(picture: Picture) -> Section | None:
    kinds = [k for k in ("exact", "near", "leaked") if any(r == k for r, _, _ in picture.duplicates)]
    if not kinds:
        return None
    pairs = {
        (source, kept if kept in picture.sources else _EXTERNAL)
        for (k, source, kept) in picture.duplicates
        if k in kinds
    }
    rows = [s for s in picture.sources if any(s == source for source, _ in pairs)]
    columns = [s for s in (*picture.sources, _EXTERNAL) if any(s == kept for _, kept in pairs)]
    counts = np.zeros((len(rows), len(columns)), np.int64)
    for (kind, source, kept), count in picture.duplicates.items():
        if kind in kinds:
            counts[rows.index(source), columns.index(kept if kept in columns else _EXTERNAL)] += count
    totals = ", ".join(
        f"{sum(n for (k, _, _), n in picture.duplicates.items() if k == kind):,} {kind}" for kind in kinds
    )
    lead = f"Removed records of the source on the left, by the source whose copy was kept ({totals})."
    return Section(
        "duplicates",
        "Duplicates between sources",
        lead,
        charts=[charts.duplicate_matrix(rows, columns, counts)],
    )


def _order(manifest: dict[str, Any], picture: Picture) -> Section | None:
    filled = np.flatnonzero(picture.windows.sum(axis=1) > 0)
    if len(filled) < 2:
        return None
    mixture = manifest["mixture"]
    groups, legend = _series(picture)
    windows = picture.windows[filled] @ groups
    shares = windows / windows.sum(axis=1, keepdims=True)
    stages = read_stages(mixture, picture.sources)
    asked = _asked_along(stages, picture.window_stage[filled]) @ groups
    places = (filled + 0.5) / len(picture.windows)
    lines = groups.argmax(axis=0)
    drawn = [
        charts.share_lines(places, shares, asked, _stage_begins(mixture)),
        charts.deviation_lines(places, picture.off[filled][:, lines], mixture["bound"]),
    ]
    unit = unit_words(mixture["unit"])
    lead = (
        f"Share of {unit} in {len(filled)} windows along the training order, with what was asked dotted. Below, the farthest "
        f"that each source is from its target at that point, in {unit}."
    )
    return Section("order", "Along the training order", lead, legend, drawn)


def _stage_begins(mixture: dict[str, Any]) -> list[tuple[str, float]]:
    """Each stage and the part of the rows that stands before it."""
    rows = np.array([stage["rows"] for stage in mixture["stages"]])
    begins = (np.cumsum(rows) - rows) / max(1, rows.sum())
    return [(stage["name"], float(b)) for stage, b in zip(mixture["stages"], begins, strict=True)]


def _asked_along(stages: Sequence[Any], stage: NDArray[np.int64]) -> NDArray[np.float64]:
    """What each window asks for, ``[num_windows, num_sources]``; a ramp is followed over the windows of its stage."""
    asked = np.zeros((len(stage), len(stages[0].last)))
    for index in np.unique(stage):
        here = np.flatnonzero(stage == index)
        part = ((np.arange(len(here)) + 0.5) / len(here))[:, None]
        asked[here] = stages[index].first * (1 - part) + stages[index].last * part
    return asked


def _series(picture: Picture) -> tuple[NDArray[np.float64], list[Legend]]:
    """Sources as lines: the largest by themselves, the others as one. ``[num_sources, num_lines]`` and their names."""
    order = np.argsort(-picture.windows.sum(axis=0), kind="stable")
    order = order[picture.windows.sum(axis=0)[order] > 0]
    own = np.sort(order[: charts.MAX_SERIES]) if len(order) > charts.MAX_SERIES + 1 else np.sort(order)
    rest = [int(s) for s in order if s not in own]
    groups = np.zeros((len(picture.sources), len(own) + bool(rest)))
    groups[own, np.arange(len(own))] = 1
    legend = [Legend(picture.sources[s], i + 1) for i, s in enumerate(own)]
    if rest:
        groups[rest, -1] = 1
        legend.append(Legend(f"{len(rest)} others", charts.MAX_SERIES + 1))
    return groups, legend


def _lengths(manifest: dict[str, Any], picture: Picture) -> Section | None:
    if not picture.lengths.sum():
        return None
    groups, legend = _series(picture)
    lengths = (picture.lengths.T @ groups).T
    limit = manifest["packing"]["max_length"]
    drawn = [charts.length_lines([item.name for item in legend], lengths, LENGTH_EDGES, limit)]
    lead = "Tokens of each emitted record, as a share of its source's records."
    if limit and picture.fills.sum() and manifest["packing"]["fill"] is not None:
        drawn.append(charts.fill_bars(picture.fills))
        lead += f" Below, how full rows are: {percent(manifest['packing']['fill'], 1)} in all ({manifest['packing']['strategy']})."
    return Section("lengths", "Lengths and packing", lead, legend, drawn)


def _examples(out: Path, manifest: dict[str, Any], picture: Picture) -> Section | None:
    numbers = sorted({n for rows in picture.first_rows.values() for n in rows[: _each(picture)]})[:_MAX_ROWS]
    if not numbers or not (out / "tokenizer" / "tokenizer.json").is_file():
        return None
    lead = "The first rows of each source, decoded from their ids. What is coloured is trained."
    return replace(row_section(out, manifest, numbers, _MAX_TOKENS), title="A few rows", lead=lead)


def row_section(
    out: Path, manifest: dict[str, Any], numbers: Iterable[int], max_tokens: int = 1 << 31
) -> Section:
    """Some rows decoded, at most ``max_tokens`` of each; numbers past the last row are passed over."""
    shards = [p for p in train_shards(out, manifest) if p.is_file()]
    decoder = Decoder(out)
    rows = []
    for number in numbers:
        row = read_row(shards, number)
        if row is not None:
            shown, hidden = _shortened(documents(row, manifest["inputs"], decoder), max_tokens)
            more = (
                f"and {plural(hidden, 'token')} more: datamix inspect shows the whole row" if hidden else ""
            )
            rows.append(Example(f"Row {number:,} · {row['source']} · stage {row['stage']}", shown, more))
    return Section("rows", "Rows", "Decoded from their ids. What is coloured is trained.", rows=rows)


def _each(picture: Picture) -> int:
    """Example rows a source, so that the page holds a few in all."""
    num_sources = sum(1 for rows in picture.first_rows.values() if rows)
    return max(1, _MAX_ROWS // 2 // max(1, num_sources))


def _shortened(
    all_documents: Sequence[DecodedDocument], max_tokens: int
) -> tuple[list[DecodedDocument], int]:
    """The first tokens of a row's documents, and how many are left out."""
    left, shown, hidden = max_tokens, [], 0
    for document in all_documents:
        spans: list[TextSpan] = []
        for span in document.spans:
            kept = min(span.num_tokens, left)
            if kept == span.num_tokens:
                spans.append(span)
            elif kept:
                characters = len(span.text) * kept // span.num_tokens
                spans.append(TextSpan(span.text[:characters] + " …", span.trained, kept))
            left, hidden = left - kept, hidden + span.num_tokens - kept
        if spans:
            shown.append(DecodedDocument(document.title, document.start, document.length, tuple(spans)))
    return shown, hidden


def _provenance(manifest: dict[str, Any]) -> Section:
    inputs = [
        [
            entry["path"],
            entry["source"],
            f"{entry['records']:,}",
            f"{entry['bytes']:,}",
            entry["encoding"] or "",
            entry["sha256"][:12],
        ]
        for entry in manifest["inputs"][:40]
    ]
    more = len(manifest["inputs"]) - len(inputs)
    foot = [f"and {plural(more, 'file')} more in manifest.json", *[""] * 5] if more else []
    tokenizer = manifest["tokenizer"]
    facts = [
        [
            "tokenizer",
            f"{PurePath(tokenizer['name']).name}, {tokenizer['vocab_size']:,} ids, sha256 {tokenizer['sha256'][:12]}",
        ],
        ["recipe", f"sha256 {manifest['recipe_sha256'][:12]}, seed {manifest['seed']}"],
        ["made with", ", ".join(f"{n} {v}" for n, v in sorted(manifest["packages"].items()))],
    ]
    return Section(
        "origin",
        "Where it came from",
        tables=[
            Table(["file", "source", "records", "bytes", "encoding", "sha256"], inputs, foot),
            Table(["", ""], facts),
        ],
    )
