"""The tables that commands print: a finished build, a plan, the sets of a sweep."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from datamix.pipeline.progress import UNIT_WORDS, scarcity_text, short_bytes, short_count, table_text
from datamix.pipeline.store import Store

_MAX_CHANGED, _MAX_CHARS = 12, 160  # lines that a step changed, and characters of them


def plain_table(first: str, heads: Sequence[str], title: str | None = None) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.add_column(first, no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def closing(manifest: dict[str, Any], out: Path, cache: Path) -> str:
    """What a build prints at its end: a line a source, and what to do next."""
    mixture, packing = manifest["mixture"], manifest["packing"]
    unit = mixture["unit"]
    heads = ("records read", "rows", "records", "tokens", "loss tokens", "epochs", "asked", "reached")
    table = plain_table("source", heads, f"{manifest['name']}: {manifest['kind']}")
    sums = [0] * 5
    for name in manifest["recipe"]["sources"]:
        source = manifest["sources"][name]
        read, emitted, share = source["records"]["read"], source["emitted"], source["share"]
        counts = (read, emitted["rows"], emitted["records"], emitted["tokens"], emitted["loss_tokens"])
        sums = [a + b for a, b in zip(sums, counts, strict=True)]
        reached = (f"{source['epochs']:.2f}", f"{share['asked']:.2%}", f"{share[unit]:.2%}")
        table.add_row(name, *(f"{n:,}" for n in counts[:3]), *map(short_count, counts[3:]), *reached)
    table.add_section()
    total = (*(f"{n:,}" for n in sums[:3]), *map(short_count, sums[3:]))
    table.add_row("all", *total, "", "", f"of {UNIT_WORDS[unit]}")
    packed = ""
    if packing["strategy"] != "none" and packing["fill"] is not None:
        packed = f" Rows are packed by {packing['strategy']} and {packing['fill']:.1%} full."
    size = sum(o["bytes"] for o in manifest["outputs"])
    lines = [
        table_text(table),
        f"No prefix strays more than {mixture['max_prefix_deviation']:,.1f} {UNIT_WORDS[unit]} from the shares asked "
        f"(bound: {mixture['bound']:,.1f}).{packed}",
        f"The set:    {out}  ({short_bytes(size)})      check it: datamix verify {out}",
        f"The report: {out / 'report.html'}",
        *(f"Next:       in {out / name}: {text}" for name, text in manifest["commands"].items()),
        f"The cache:  {cache}  ({short_bytes(Store(cache / 'store').num_bytes())}, safe to delete)",
    ]
    return "\n".join(lines)


def plan_table(plan: dict[str, Any]) -> str:
    """What the sources hold once, and what the mixture takes of it; what is scarce comes first."""
    unit = UNIT_WORDS[plan["unit"]]
    about = "" if plan["exact"] else "~"
    lines = [f"{plan['name']}: {plan['kind']}, unit {unit}", ""]
    if plan["scarcity"] is not None:
        lines += [scarcity_text(plan["scarcity"], plan["unit"], about), ""]
    available = plain_table("available", ("files", "records", "tokens", "loss tokens", "known"))
    heads = [f"% of\n{name}" for name in UNIT_WORDS.values()]
    if plan["loss_norm"] is not None:
        heads.append(f"% of loss,\n{plan['loss_norm']} mean")
    mixture = plain_table(
        "the mixture takes", ("asked", unit, "epochs", "at most", "worth", "unused", *heads, "")
    )
    for line in plan["sources"]:
        mark = "" if line["exact"] else "~"
        counts = (mark + short_count(line[name]) + _margin(line, name) for name in UNIT_WORDS)
        available.add_row(line["name"], f"{line['files']:,}", *counts, line["stage"])
        taken, worth = mark + short_count(line["taken"]), mark + short_count(line["effective"])
        epochs = (f"{line['epochs']:.2f}", f"{line['max_epochs']:g}")
        shares = (f"{mark}{100 * share:.1f}" for share in line["shares"].values())
        amounts = (f"{line['asked']:.2%}", taken, *epochs, worth, f"{line['unused_share']:.0%}")
        mixture.add_row(line["name"], *amounts, *shares, "binds" if line["binds"] else "")
    lines += [table_text(available), "", table_text(mixture), "", f"Size: {about}{plan['total']:,} {unit}."]
    for stage in plan["stages"] if len(plan["stages"]) > 1 else ():
        weights = ", ".join(f"{name} {weight:.1%}" for name, weight in stage["weights"].items() if weight)
        lines.append(f"Stage {stage['name']}: {about}{short_count(stage['size'])} ({weights}).")
    if "batch" in plan:
        amounts_of = ", ".join(f"{name} {number:,.1f}" for name, number in plan["batch"].items())
        lines.append(f"Each global batch holds, within two rows: {amounts_of}.")
    lines += [
        _need_text(need, unit, about) for need in plan["needs"] if any(o["lacks"] for o in need["others"])
    ]
    lines += [f"Note: {note}" for note in plan["notes"]]
    lines.append(
        f"Disk: ~{short_bytes(plan['out_bytes'])} for the set, ~{short_bytes(plan['cache_bytes'])} for the cache; "
        f"{short_bytes(plan['free_bytes'])} free."
    )
    if not plan["exact"]:
        lines.append(
            "Numbers with ~ are estimates, right within the margin 19 times of 20; --exact counts them."
        )
    if plan.get("seconds"):
        lines.append(
            f"Time: about {plan['seconds'] / 60:.0f} min."
            if plan["seconds"] > 90
            else f"Time: about {plan['seconds']:.0f} s."
        )
    return "\n".join(lines)


def cluster_table(cluster: dict[str, Any]) -> str:
    """What a build would take on a cluster, phase by phase."""
    size = f"{cluster['nodes']:,} x {cluster['cores']:,} processors"
    table = plain_table(f"on {size}", ("tasks", "time", "read and written", "memory a machine"))
    for line in [*cluster["phases"], {**cluster, "phase": "all"}]:
        amounts = (short_bytes(line["bytes"]), short_bytes(line["memory"]))
        table.add_row(line["phase"], f"{line['tasks']:,}", _time_text(line["seconds"]), *amounts)
    return (
        f"{table_text(table)}\n\nProcessors are busy {cluster['busy']:.0%} of the time; the disk gives "
        f"{short_bytes(cluster['bytes'] / max(1.0, cluster['seconds']))}/s on average. select and order run on one processor, pack on "
        "one a source. Rates: docs/cluster.md."
    )


def _time_text(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def plan_tree(plan: dict[str, Any]) -> str:
    """Groups and sources with the shares asked and what is taken of each."""
    unit, about = UNIT_WORDS[plan["unit"]], "" if plan["exact"] else "~"
    by_name = {line["name"]: line for line in plan["sources"]}
    grouped = {name for members in plan["groups"].values() for name in members}
    tops = [(name, members) for name, members in plan["groups"].items()]
    tops += [(name, []) for name in by_name if name not in grouped]

    def text(name: str, lines: list[dict[str, Any]]) -> str:
        taken = about + short_count(sum(line["taken"] for line in lines))
        epochs = f", {lines[0]['epochs']:.2f} epochs" if len(lines) == 1 and lines[0]["name"] == name else ""
        return f"{name}  {sum(line['asked'] for line in lines):.1%}  {taken} {unit}{epochs}"

    rows = [f"{plan['name']}  {about}{short_count(plan['total'])} {unit}"]
    for at, (name, members) in enumerate(tops):
        is_last = at == len(tops) - 1
        rows.append(
            ("└── " if is_last else "├── ") + text(name, [by_name[m] for m in members] or [by_name[name]])
        )
        for number, member in enumerate(members):
            branch = "└── " if number == len(members) - 1 else "├── "
            rows.append(("    " if is_last else "│   ") + branch + text(member, [by_name[member]]))
    return "\n".join(rows)


def _need_text(need: dict[str, Any], unit: str, about: str) -> str:
    """What the other sources lack for one to be used up."""
    short = [
        f"{o['name']} must give {about}{short_count(o['needs'])} {unit} ({o['epochs']:.2f} epochs) and has {about}"
        f"{short_count(o['has'])}: it lacks {about}{short_count(o['lacks'])}, about {short_count(o['records'])} of its records"
        for o in need["others"]
        if o["lacks"]
    ]
    return f"To use all of {need['source']} (max_epochs {need['max_epochs']:g}), {'; '.join(short)}."


def _margin(line: dict[str, Any], name: str) -> str:
    """How far an estimate may be wrong, as a part of it."""
    part = line["margins"].get(name, 0.0) / max(1.0, line[name])
    return f" ±{part:.1%}" if part >= 0.0005 else ""


def ladder_table(sets: dict[Path, dict[str, Any]], scale: float = 1.0) -> str:
    """One line a set of a sweep: its size, then the share and epochs of every source and the share of every group."""
    first = next(iter(sets.values()))
    unit, sources = first["mixture"]["unit"], first["recipe"]["sources"]
    groups: dict[str, list[str]] = {}
    for name, source in sources.items():
        groups.setdefault(source["group"] or "", []).append(name)
    several = {group: names for group, names in groups.items() if group and len(names) > 1}
    table = plain_table(
        "set", ("rows", UNIT_WORDS[unit], *sources, *(f"all of {group}" for group in several))
    )
    totals = []
    for out, manifest in sets.items():
        counted = manifest["sources"]
        totals.append(sum(s["emitted"][unit] for s in counted.values()))
        table.add_row(
            str(out),
            f"{manifest['packing']['rows']:,}",
            short_count(totals[-1]),
            *(f"{counted[n]['share'][unit]:.2%} x{counted[n]['epochs'] / scale:.2f}" for n in sources),
            *(f"{sum(counted[n]['share'][unit] for n in names):.2%}" for names in several.values()),
        )
    width = 160 + max(len(str(out)) for out in sets)  # a long path takes no room from the shares
    lines = [
        table_text(table, width),
        "",
        f"Shares are of {UNIT_WORDS[unit]}; x is how often each record is used.",
    ]
    if first["recipe"]["mix"]["size"] is None and max(totals) > 1.1 * min(totals):
        lines.append("Every set is as large as its caps allow. For sets of one size, give mix.size.")
    lines.append(
        "Virtual sets: `datamix.open(SET)` reads one, `datamix export SET --to parquet` writes it out."
    )
    return "\n".join(lines)


def trace_text(traced: dict[str, Any]) -> str:
    """What ``trace`` prints: a block a record."""
    lines: list[str] = []
    for number, record in enumerate(traced["records"], 1):
        of = f" {number} of {len(traced['records'])}" if len(traced["records"]) > 1 else ""
        lines.append(
            f"Row {traced['row']:,}, record{of}: record {record['record']:,} of {record['file']} (source {record['source']})"
        )
        start, stop = record["tokens"]
        lines.append(f"  in the row    tokens {start:,} to {stop:,} of the record")
        if record.get("row_group") is not None:
            lines.append(f"  place         row group {record['row_group']:,}")
        elif record["bytes"] is None:
            lines.append(
                "  place         unknown: the input is missing, or has changed since the set was built"
            )
        else:
            line = f", line {record['line']:,}" if record["line"] is not None else ""
            lines.append(f"  place         bytes {record['bytes'][0]:,} to {record['bytes'][1]:,}{line}")
        lines.append(f"  licence       {record['license'] or 'not stated'}")
        for step in record["steps"] or ():
            lines.append(f"  {step['step']:<13} {'changed' if step['changed'] else 'changed nothing'}")
            lines += [f"    {text}" for text in _changed_lines(step)]
        for copy in record["removed_because_of"]:
            place = f"record {copy['record']:,} of {copy['file']} (source {copy['source']})"
            lines.append(f"  removed       {place}: {copy['reason']}, similarity {copy['similarity']:.2f}")
    return "\n".join(lines)


def _changed_lines(step: dict[str, Any]) -> list[str]:
    """The lines that a step changed, as a diff."""
    if not step["changed"]:
        return []
    before, after = (step[key].split("\n") for key in ("before", "after"))
    lines = list(difflib.unified_diff(before, after, lineterm="", n=0))[2:]
    shown = [_clipped(line) for line in lines if not line.startswith("@@")]
    more = len(shown) - _MAX_CHANGED
    return shown[:_MAX_CHANGED] + ([f"... and {more:,} more lines"] if more > 0 else [])


def _clipped(line: str) -> str:
    return line if len(line) <= _MAX_CHARS else f"{line[:_MAX_CHARS]} ..."
