"""The report's sections: each takes the manifest and what was gathered, and gives tables, drawings and words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix.audit.prefix import read_stages
from datamix.core.contracts import UNITS
from datamix.reporting import charts
from datamix.reporting.card import licenses
from datamix.reporting.charts import BarRow, Bars, Cell, Curve, Example, Legend, Plot, Section, Table
from datamix.reporting.decode import (
    Decoder,
    TextSpan,
    documents,
    read_row,
    split_shards,
)
from datamix.reporting.gather import LENGTH_EDGES, Picture
from datamix.reporting.verdicts import SHOWN_FATES
from datamix.reporting.words import Words, percent, unit_words

_MAX_ROWS = 6  # example rows on the page
_MAX_TOKENS = 600  # shown of each
_MAX_INPUTS = 40  # files listed
_MAX_PAIRS = 12  # pairs of sources with duplicates
_MAX_PLACES = 3  # sources listed for a reason
_AMOUNTS = ("rows", *UNITS)
_STEPS = ("read", "rejected", "cleaned", "dropped", "removed", "validation", "unused", "used")


def sections(out: Path, manifest: dict[str, Any], picture: Picture, say: Words) -> list[Section]:
    """Every section that has something to show."""
    several = [
        _shares(manifest, say),
        _funnel(manifest, say),
        _reasons(manifest, say),
        _duplicates(picture, say),
        _order(manifest, picture, say),
        _lengths(manifest, picture, say),
    ]
    shown = [section for section in several if section is not None]
    per_source = max(1, _MAX_ROWS // 2 // max(1, sum(map(bool, picture.first_rows.values()))))
    numbers = sorted({n for rows in picture.first_rows.values() for n in rows[:per_source]})[:_MAX_ROWS]
    if numbers and (out / "tokenizer" / "tokenizer.json").is_file():
        lead = say("The first rows of each source, decoded from their ids. What is coloured is trained.")
        rows = row_section(out, manifest, numbers, say, _MAX_TOKENS)
        shown.append(replace(rows, title=say("A few rows"), lead=lead))
    return [*shown, *_provenance(manifest, say)]


def _members(manifest: dict[str, Any], names: Iterable[str]) -> list[tuple[str, list[str], int]]:
    """Sources in rows: a group of several before its members, which are one deeper."""
    groups: dict[str, list[str]] = {}
    for name in names:
        group = manifest["recipe"]["sources"].get(name, {}).get("group")
        groups.setdefault(f"group {group}" if group else f"source {name}", []).append(name)
    rows = []
    for key, members in groups.items():
        is_group = key.startswith("group ") and len(members) > 1
        if is_group:
            rows.append((key.removeprefix("group "), members, 0))
        rows += [(name, [name], int(is_group)) for name in members]
    return rows


def _shares(manifest: dict[str, Any], say: Words) -> Section:
    """Shares asked and reached, in the asked unit first."""
    sources, unit = manifest["sources"], manifest["mixture"]["unit"]
    units = sorted(UNITS, key=lambda u: u != unit)  # the asked one first
    # A validation file is a source that nothing is asked of.
    weighed = [n for n, s in sources.items() if s["share"]["asked"] or s["emitted"]["rows"]]
    members = _members(manifest, weighed)

    def total(names: Sequence[str], field: str, key: str) -> float:
        return float(sum(sources[n][field][key] for n in names))

    top = max(total(names, "share", key) for _, names, _ in members for key in ("asked", *units)) or 1.0
    bars, rows = [], []
    for name, names, depth in members:
        shares = {key: total(names, "share", key) for key in ("asked", *units)}
        cells = [
            Cell(percent(shares[u]), [(1 if u == unit else 9, 100 * shares[u] / top)],
                 100 * shares["asked"] / top if u == unit else None)
            for u in units
        ]  # fmt: skip
        bars.append(BarRow(name, cells, depth))
        available = total(names, "available", unit)
        epochs = total(names, "emitted", unit) / available if available else 0.0
        epochs = sources[names[0]]["epochs"] if len(names) == 1 else epochs
        counts = (f"{int(total(names, 'emitted', u)):,}" for u in _AMOUNTS)
        rows.append([name, *(percent(s) for s in shares.values()), *counts, f"{epochs:.2f}"])
    head = [say("source"), say("asked"), *(say(f"% of {unit_words(u)}") for u in units)]
    head += [*(say(f"{unit_words(u)} emitted") for u in _AMOUNTS), say("epochs")]
    foot = [say("all"), percent(total(weighed, "share", "asked")), *[percent(1.0)] * 3]
    foot += [*(f"{int(total(weighed, 'emitted', u)):,}" for u in _AMOUNTS), ""]
    lead = say(
        "Weights were asked in {unit}; the tick marks what was asked. In another unit the shares differ. "
        "Records emitted count repeats."
    ).format(
        unit=say(unit_words(unit)),
    )
    names_of_units = [say(unit_words(u)) for u in units]
    names_of_units[0] = say("{unit} (asked)").format(unit=names_of_units[0])
    drawing = Bars(say("Share of the emitted set, by source"), names_of_units, bars)
    depths = [depth for _, _, depth in members]
    return Section("shares", say("Shares"), lead, bars=[drawing], tables=[Table(head, rows, foot, depths)])


def _reasons(manifest: dict[str, Any], say: Words) -> Section | None:
    """Why records are not used, by count."""
    reasons: Counter[tuple[str, str]] = Counter()
    places: dict[tuple[str, str], Counter[str]] = {}
    for name, source in manifest["sources"].items():
        for fate in ("rejected", "cleaned", "dropped", "removed", "unused"):
            for reason, count in source.get(f"{fate}_by", {}).items():
                if count:
                    reasons[fate, reason] += count
                    places.setdefault((fate, reason), Counter())[name] += count
    if not reasons:
        return None
    ordered = sorted(reasons, key=lambda key: (-reasons[key], key))
    rows = []
    for key in ordered:
        where = [f"{name} {count:,}" for name, count in places[key].most_common(_MAX_PLACES)]
        if len(places[key]) > _MAX_PLACES:
            where.append(say("and {n} more").format(n=len(places[key]) - _MAX_PLACES))
        rows.append([*key, f"{reasons[key]:,}", say.join(where)])
    lead = say(
        "Rejected records are in rejects/ with their original bytes, file and line; the others in removed/."
    )
    table = Table(
        [say("fate"), say("reason"), say("records"), say("of which sources")], rows, words=(0, 1, 3)
    )
    return Section("reasons", say("Why records are not used"), lead, tables=[table])


def _funnel(manifest: dict[str, Any], say: Words) -> Section:
    """From records read to rows emitted, each step's loss taken off."""
    sources, rows, bars = manifest["sources"], [], []
    members = _members(manifest, sources)
    for name, names, depth in members:
        counts = {step: sum(sources[n]["records"][step] for n in names) for step in _STEPS}
        emitted = sum(sources[n]["emitted"]["rows"] for n in names)
        rows.append([name, *(f"{n:,}" for n in counts.values()), f"{emitted:,}"])
        whole = max(1, counts["read"])
        parts = [(charts.FATE_COLOURS[fate], 100 * counts[fate] / whole) for fate in SHOWN_FATES]
        bars.append(BarRow(name, [Cell(f"{counts['read']:,}", parts)], depth))
    sums = [sum(s["records"][step] for s in sources.values()) for step in _STEPS]
    foot = [say("all"), *(f"{n:,}" for n in (*sums, sum(s["emitted"]["rows"] for s in sources.values())))]
    head = [say("source"), "read", *(f"−\u00a0{step}" for step in _STEPS[1:-1]), "=\u00a0used", say("rows")]
    fates = [f for f in SHOWN_FATES if any(s["records"][f] for s in sources.values())]
    lead = say(
        "Every record that was read has one fate, and those that are not used have their line in rejects/ or removed/."
    )
    drawing = Bars(say("Fates as a share of the records read, and their number"), [say("records read")], bars)
    legend = [Legend(fate, charts.FATE_COLOURS[fate]) for fate in fates]
    table = Table(head, rows, foot, [depth for _, _, depth in members])
    return Section("funnel", say("From records read to rows"), lead, legend, [drawing], tables=[table])


def _duplicates(picture: Picture, say: Words) -> Section | None:
    pairs: Counter[tuple[str, str]] = Counter()
    kinds: Counter[str] = Counter()
    for (kind, source, keeper), count in picture.duplicates.items():
        if kind in ("exact", "near", "leaked"):
            kinds[kind] += count
            pairs[source, keeper if keeper in picture.sources else say("other sets")] += count
    if not kinds:
        return None
    ordered = sorted(pairs, key=lambda pair: (-pairs[pair], pair))[:_MAX_PAIRS]
    most = pairs[ordered[0]]
    rows = [
        BarRow(
            f"{source} → {keeper}",
            [Cell(f"{pairs[source, keeper]:,}", [(1, 100 * pairs[source, keeper] / most)])],
        )
        for source, keeper in ordered
    ]
    totals = say.join([f"{number:,} {kind}" for kind, number in sorted(kinds.items())])
    lead = say(
        "Removed records of the source on the left, by the source whose copy was kept ({totals})."
    ).format(
        totals=totals,
    )
    if len(pairs) > len(ordered):
        lead += " " + say("The {n} largest pairs of {total}.").format(n=len(ordered), total=len(pairs))
    drawing = Bars(say("Records removed for a copy, by pair of sources"), [say("records")], rows)
    return Section("duplicates", say("Duplicates between sources"), lead, bars=[drawing])


def _order(manifest: dict[str, Any], picture: Picture, say: Words) -> Section | None:
    filled = np.flatnonzero(picture.windows.sum(axis=1) > 0)
    if len(filled) < 2:
        return None
    mixture, unit = manifest["mixture"], say(unit_words(manifest["mixture"]["unit"]))
    groups, legend = _series(picture, say)
    windows = picture.windows[filled] @ groups
    shares = (windows / windows.sum(axis=1, keepdims=True)).T
    stages, stage = read_stages(mixture, picture.sources), picture.window_stage[filled]
    asked = np.zeros((len(stage), len(picture.sources)))  # a ramp is followed over the windows of its stage
    for index in np.unique(stage):
        mask = np.flatnonzero(stage == index)
        part = ((np.arange(len(mask)) + 0.5) / len(mask))[:, None]
        asked[mask] = stages[index].first * (1 - part) + stages[index].last * part
    asked = (asked @ groups).T
    num_rows = np.array([s["rows"] for s in mixture["stages"]])
    begins = 100 * (np.cumsum(num_rows) - num_rows) / max(1, num_rows.sum())
    marks = [(float(b), str(n + 1)) for n, b in enumerate(begins)] if len(begins) > 1 else []
    places, off = (filled + 0.5) / len(picture.windows), picture.off[filled][:, groups.argmax(axis=0)].T
    top = min(1.0, 1.12 * float(max(shares.max(), asked.max())))
    bound, along = mixture["bound"], say("of the training order")
    high = 1.12 * max(bound, float(off.max()))
    lines = [Curve(charts.path(places, y, top), legend[n].colour) for n, y in enumerate(shares)]
    lines += [Curve(charts.path(places, y, top), legend[n].colour, "asked") for n, y in enumerate(asked)]
    far = [Curve(charts.path(places, y, high), legend[n].colour) for n, y in enumerate(off)]
    limit = [
        (
            100 * bound / high,
            say("bound {bound}").format(bound=f"{bound:,.4g}" if bound < 10 else f"{bound:,.0f}"),
        )
    ]
    titles = say("Share of each source in {n} windows; what was asked is dotted").format(n=len(filled))
    per = charts.part_ticks()
    drawn = [
        Plot(titles, along, say("share of {unit}").format(unit=unit), lines, per,
             charts.round_ticks(top, charts.percent_text), marks),
        Plot(say("The farthest that each source is from its target up to there"), along, unit, far, per,
             charts.round_ticks(high, charts.short_number), [(at, "") for at, _ in marks], limit),
    ]  # fmt: skip
    tables = []
    if len(begins) > 1:
        head = [say("stage"), say("share"), say("rows"), say("tokens"), say("loss tokens"), say("weights")]
        rows = [
            [f"{n + 1} {s['name']}", percent(s["share"], 1), *(f"{s.get(u, 0):,}" for u in ("rows", "tokens", "loss_tokens")),
             say.join([f"{name} {percent(w, 1)}" for name, w in sorted(s["weights"].items(), key=lambda i: -i[1])[:_MAX_ROWS] if w])]
            for n, s in enumerate(mixture["stages"])
        ]  # fmt: skip
        tables.append(Table(head, rows, words=(0, 5)))
    return Section("order", say("Along the training order"), "", legend, plots=drawn, tables=tables)


def _series(picture: Picture, say: Words) -> tuple[NDArray[np.float64], list[Legend]]:
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
        legend.append(Legend(say("{n} others").format(n=len(rest)), charts.OTHERS))
    return groups, legend


def _lengths(manifest: dict[str, Any], picture: Picture, say: Words) -> Section | None:
    if not picture.lengths.sum():
        return None
    groups, legend = _series(picture, say)
    packing, lengths = manifest["packing"], (picture.lengths.T @ groups).T
    limit, fill = packing["max_length"], packing["fill"]
    titles = (
        say("Tokens of each emitted record"),
        say("tokens a record"),
        say("share of the source's records"),
    )
    drawn = [charts.length_plot(titles, lengths, LENGTH_EDGES, (limit, "max_length") if limit else None)]
    if limit and picture.fills.sum() and fill is not None:
        title = say("How full rows are: {fill} in all ({strategy})").format(
            fill=percent(fill, 1),
            strategy=packing["strategy"],
        )
        shares = picture.fills / picture.fills.sum()
        top = 1.08 * float(shares.max())
        ticks = charts.round_ticks(top, charts.percent_text)
        column = Curve(charts.columns(shares, top), 1, "area")
        drawn.append(
            Plot(title, say("of max_length used"), say("share of rows"), [column], charts.part_ticks(), ticks)
        )
    return Section("lengths", say("Lengths and packing"), "", legend, plots=drawn)


def row_section(
    out: Path, manifest: dict[str, Any], numbers: Iterable[int], say: Words, max_tokens: int = 1 << 31
) -> Section:
    """Some rows decoded, at most ``max_tokens`` of each; numbers past the last row are passed over."""
    shards, decoder = split_shards(out, manifest), Decoder(out)
    rows: list[Example] = []
    for number in numbers:
        row = read_row(shards, number)
        if row is None:
            continue
        left, hidden, shown = max_tokens, 0, []
        for document in documents(row, manifest["inputs"], decoder, say):
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
        more = "{tokens} more: datamix inspect shows the whole row"
        more = say(more).format(tokens=say.count(hidden, "token")) if hidden else ""
        title = say("Row {n} · {source} · stage {stage}").format(
            n=f"{number:,}", source=row["source"], stage=row["stage"]
        )
        rows.append(Example(title, shown, more, open=not rows or max_tokens > _MAX_TOKENS))
    return Section(
        "rows", say("Rows"), say("Decoded from their ids. What is coloured is trained."), rows=rows
    )


def _provenance(manifest: dict[str, Any], say: Words) -> Iterator[Section]:
    """The commands that train from the set, then the files and versions it was made from."""
    commands = [
        (say("in {folder}/").format(folder=name), text) for name, text in manifest.get("commands", {}).items()
    ]
    commands.append((say("recount the set"), "datamix verify OUT"))
    commands.append((say("write it for a trainer"), "datamix export OUT --to FORMAT"))
    lead = say("OUT is the folder of this page.")
    yield Section("train", say("Train from it"), lead, commands=commands)
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
    foot = (
        [say("and {files} more in manifest.json").format(files=say.count(more, "file")), *[""] * 5]
        if more
        else []
    )
    tokenizer = manifest["tokenizer"]
    name = say("{name}, {n} ids").format(
        name=PurePath(tokenizer["name"]).name, n=f"{tokenizer['vocab_size']:,}"
    )
    given = [f"{text or say('not given')} ({say.join(names)})" for text, names in licenses(manifest).items()]
    facts = [
        *([[say("licenses"), say.join(given, "; ")]] if any(licenses(manifest)) else []),
        *([[say("content"), f"sha256 {digest}"]] if (digest := manifest["content_sha256"]) else []),
        [say("tokenizer"), f"{name}, sha256 {tokenizer['sha256'][:12]}"],
        [say("recipe"), f"sha256 {manifest['recipe_sha256'][:12]}, seed {manifest['seed']}"],
        [say("packages"), ", ".join(f"{n} {v}" for n, v in sorted(manifest["packages"].items()))],
    ]
    head = [say("input file"), say("source"), say("records"), say("bytes"), say("encoding"), "sha256"]
    files = Table(head, inputs, foot, words=(0, 1, 4, 5))
    tables = [files, Table([say("what"), say("which")], facts, words=(0, 1))]
    yield Section("origin", say("Where it came from"), tables=tables)
