"""The closing table of a build: what was asked, what was reached, where it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from datamix.pipeline.notices import UNIT_WORDS, scarcity_text, table_text
from datamix.pipeline.progress import short_bytes, short_count
from datamix.pipeline.store import Store


def closing(manifest: dict[str, Any], out: Path, cache: Path) -> str:
    """The table, and three lines under it."""
    unit = manifest["mixture"]["unit"]
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        title=f"{manifest['name']}: {manifest['kind']}",
        title_justify="left",
    )
    table.add_column("source", no_wrap=True)
    for name in ("records read", "rows", "records", "tokens", "loss tokens", "epochs", "asked", "reached"):
        table.add_column(name, justify="right", no_wrap=True)
    total = {"rows": 0, "records": 0, "tokens": 0, "loss_tokens": 0, "read": 0}
    for name in manifest["recipe"]["sources"]:
        source = manifest["sources"][name]
        emitted = source["emitted"]
        for key in ("rows", "records", "tokens", "loss_tokens"):
            total[key] += emitted[key]
        total["read"] += source["records"]["read"]
        table.add_row(
            name,
            f"{source['records']['read']:,}",
            f"{emitted['rows']:,}",
            f"{emitted['records']:,}",
            short_count(emitted["tokens"]),
            short_count(emitted["loss_tokens"]),
            f"{source['epochs']:.2f}",
            f"{source['share']['asked']:.2%}",
            f"{source['share'][unit]:.2%}",
        )
    table.add_section()
    table.add_row(
        "all",
        f"{total['read']:,}",
        f"{total['rows']:,}",
        f"{total['records']:,}",
        short_count(total["tokens"]),
        short_count(total["loss_tokens"]),
        "",
        "",
        f"of {UNIT_WORDS[unit]}",
    )
    mixture, packing = manifest["mixture"], manifest["packing"]
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
    """The tables that people otherwise compute by hand; what is scarce comes first."""
    unit = UNIT_WORDS[plan["unit"]]
    about = "" if plan["exact"] else "~"
    lines = [f"{plan['name']}: {plan['kind']}, unit {unit}", ""]
    if plan["scarcity"] is not None:
        lines += [scarcity_text(plan["scarcity"], plan["unit"], about), ""]
    lines += [table_text(_there_is(plan)), "", table_text(_mixture(plan)), ""]
    lines.append(f"Size: {about}{plan['total']:,} {unit}.")
    if len(plan["stages"]) > 1:
        lines += [
            f"Stage {s['name']}: {about}{short_count(s['size'])} ({_shares(s['weights'])})."
            for s in plan["stages"]
        ]
    if "batch" in plan:
        held = ", ".join(f"{name} {number:,.1f}" for name, number in plan["batch"].items())
        lines.append(f"Each global batch holds, within two rows: {held}.")
    lines += [f"Note: {note}" for note in plan["notes"]]
    lines.append(
        f"Disk: ~{short_bytes(plan['out_bytes'])} for the set, ~{short_bytes(plan['cache_bytes'])} for the cache; "
        f"{short_bytes(plan['free_bytes'])} free."
    )
    if not plan["exact"]:
        lines.append(
            "Numbers with ~ are estimated from a sample, before duplicates are removed; --exact counts them."
        )
    return "\n".join(lines)


def _there_is(plan: dict[str, Any]) -> Table:
    """What the sources hold, once."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("there is", no_wrap=True)
    for name in ("files", "records", "tokens", "loss tokens", "known"):
        table.add_column(name, justify="right", no_wrap=True)
    for line in plan["sources"]:
        table.add_row(
            line["name"],
            f"{line['files']:,}",
            *(_about(line) + short_count(line[name]) for name in UNIT_WORDS),
            line["stage"],
        )
    return table


def _mixture(plan: dict[str, Any]) -> Table:
    """What the mixture takes of it, and every source's share of the result in all three units."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("the mixture takes", no_wrap=True)
    shares = [f"% of\n{name}" for name in UNIT_WORDS.values()]
    if plan["loss_norm"] is not None:
        shares.append(f"% of loss,\n{plan['loss_norm']} mean")
    for name in ("asked", UNIT_WORDS[plan["unit"]], "epochs", "at most", "worth", "unused", *shares, ""):
        table.add_column(name, justify="right", no_wrap=True)
    for line in plan["sources"]:
        table.add_row(
            line["name"],
            f"{line['asked']:.2%}",
            _about(line) + short_count(line["taken"]),
            f"{line['epochs']:.2f}",
            f"{line['max_epochs']:g}",
            _about(line) + short_count(line["effective"]),
            f"{line['unused_share']:.0%}",
            *(f"{_about(line)}{100 * share:.1f}" for share in line["shares"].values()),
            "binds" if line["binds"] else "",
        )
    return table


def _about(line: dict[str, Any]) -> str:
    return "" if line["exact"] and line["stage"] == "after dedupe" else "~"


def _shares(weights: dict[str, float]) -> str:
    return ", ".join(f"{name} {weight:.1%}" for name, weight in weights.items() if weight)


def ladder_table(made: dict[Path, dict[str, Any]], scale: float = 1.0) -> str:
    """One line a rung of a sweep: its size, then the share and epochs of every source and the share of every group."""
    first = next(iter(made.values()))
    unit, said = first["mixture"]["unit"], first["recipe"]["sources"]
    groups: dict[str, list[str]] = {}
    for name, source in said.items():
        groups.setdefault(source["group"] or "", []).append(name)
    several = {group: names for group, names in groups.items() if group and len(names) > 1}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("set", no_wrap=True)
    for name in ("rows", UNIT_WORDS[unit], *said, *(f"all of {group}" for group in several)):
        table.add_column(name, justify="right", no_wrap=True)
    totals = []
    for out, manifest in made.items():
        sources = manifest["sources"]
        totals.append(sum(s["emitted"][unit] for s in sources.values()))
        table.add_row(
            str(out),
            f"{manifest['packing']['rows']:,}",
            short_count(totals[-1]),
            *(f"{sources[n]['share'][unit]:.2%} x{sources[n]['epochs'] / scale:.2f}" for n in said),
            *(f"{sum(sources[n]['share'][unit] for n in names):.2%}" for names in several.values()),
        )
    lines = [table_text(table), "", f"Shares are of {UNIT_WORDS[unit]}; x is how often each record is used."]
    if first["recipe"]["mix"]["size"] is None and max(totals) > 1.1 * min(totals):
        lines.append("Every set is as large as its caps allow. For sets of one size, give mix.size.")
    lines.append(
        "Virtual sets: `datamix.open(SET)` reads one, `datamix export SET --to parquet` writes it out."
    )
    return "\n".join(lines)
