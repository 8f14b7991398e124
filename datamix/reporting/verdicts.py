"""The report's opening: what a person wants to know first, as sentences with numbers in them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from datamix.reporting.words import Words, percent, unit_words

SHOWN_FATES = ("used", "unused", "validation", "dropped", "removed", "cleaned", "rejected")
_NOTABLE = 0.05  # a share of a source's records above which a loss is worth a sentence of its own
_FATE_WORDS = {
    "rejected": "{records} of {source} not readable or in no known shape ({share}): {why}.",
    "cleaned": "{records} of {source} dropped by cleaning ({share}): {why}.",
    "removed": "{records} of {source} removed ({share}): {why}.",
    "dropped": "{records} of {source} not encodable as asked ({share}): {why}.",
}


@dataclass(frozen=True)
class Verdict:
    """One sentence; ``look`` marks what a person should think about."""

    tone: Literal["good", "look"]
    sentence: str


def verdicts(manifest: dict[str, Any], say: Words | None = None) -> list[Verdict]:
    """What became of the recipe, the most important first; sources of a group count together, as the recipe weighs them."""
    say = say or Words()
    mixture, sources = manifest["mixture"], manifest["sources"]
    unit = mixture["unit"]
    shares: dict[str, tuple[float, float]] = {}
    for name, source in sources.items():
        group = manifest["recipe"]["sources"].get(name, {}).get("group") or name
        asked, reached = shares.get(group, (0.0, 0.0))
        shares[group] = (asked + source["share"]["asked"], reached + source["share"][unit])
    parts = [
        say("{name} asked {asked}, reached {reached}").format(name=n, asked=percent(a, 1), reached=percent(r))
        for n, (a, r) in shares.items()
        if a
    ]
    if len(parts) > 6:
        parts = [*parts[:6], say("and {n} more, all").format(n=len(parts) - 6)]
    worst, bound = (
        f"{value:,.2f}" if unit == "records" else f"{math.ceil(value):,}"
        for value in (mixture["max_prefix_deviation"], mixture["bound"])
    )
    holds = mixture["max_prefix_deviation"] <= mixture["bound"]
    text = "{parts} of {unit}; a prefix strayed {worst}, beyond {bound} {unit}."
    if holds:
        text = "{parts} of {unit}; no prefix strayed more than {worst} of at most {bound} {unit}."
    words = {"parts": say.join(parts, "; "), "unit": say(unit_words(unit)), "worst": worst, "bound": bound}
    opening = [Verdict("good" if holds else "look", say(text).format(**words))]
    read, used, held_out = (
        sum(s["records"][fate] for s in sources.values()) for fate in ("read", "used", "validation")
    )
    lost = read - sum(s["records"][fate] for s in sources.values() for fate in SHOWN_FATES)
    if lost:
        text = "{records} cannot be accounted for: the ledger does not balance."
        opening.append(Verdict("look", say(text).format(records=say.count(abs(lost), "record"))))
    else:
        text = "Of {records} read, {used} are in train/; each of the other {rest} is accounted for."
        if held_out:
            text = "Of {records} read, {used} are in train/; each of the other {rest} is accounted for, {held_out} of them in validation/."
        counts = {"used": f"{used:,}", "rest": f"{read - used:,}", "held_out": f"{held_out:,}"}
        opening.append(Verdict("good", say(text).format(records=say.count(read, "record"), **counts)))
    return [*opening, *_remarks(manifest, say)]


def _remarks(manifest: dict[str, Any], say: Words) -> Iterator[Verdict]:
    """Sources that are repeated or left over, how full rows are, and the largest losses of records."""
    sources, binding, packing = manifest["sources"], manifest["mixture"].get("binding"), manifest["packing"]
    spare: dict[str, int] = {}
    for name, source in sources.items():
        if source["epochs"] > 1 + 1e-9:
            text = "{name} is repeated: each of its records is used {times} times on average."
            yield Verdict("look", say(text).format(name=name, times=f"{source['epochs']:.2f}"))
        unused, used = source.get("unused_by", {}).get("not_needed", 0), source["records"]["used"]
        if name != binding and unused > _NOTABLE * (unused + used):
            spare[f"{name} {unused:,} ({percent(unused / (unused + used), 1)})"] = unused
    if binding and spare:
        ordered = sorted(spare, key=lambda text: -spare[text])
        if len(ordered) > 5:
            ordered = [*ordered[:5], say("and {n} more sources").format(n=len(spare) - 5)]
        text = "Usable records that were not needed: {parts}. {binding} ran out first and sets the size."
        yield Verdict("look", say(text).format(parts=say.join(ordered), binding=binding))
    if packing["strategy"] != "none" and packing["fill"] is not None:
        text = "{rows} of at most {tokens} tokens are {fill} full; no record is split between rows."
        if packing["cut_records"]:
            text = "{rows} of at most {tokens} tokens are {fill} full; {cut} split between rows."
        numbers = {"tokens": f"{packing['max_length']:,}", "fill": percent(packing["fill"], 1)}
        counts = {
            "rows": say.count(packing["rows"], "row"),
            "cut": say.count(packing["cut_records"], "record"),
        }
        tone: Literal["good", "look"] = "good" if packing["fill"] > 0.9 else "look"
        yield Verdict(tone, say(text).format(**numbers, **counts))
    truncated = sum(s["truncated"] for s in sources.values())
    if truncated:
        text = "{records} longer than max_length lost tokens; what is left of them can be used."
        yield Verdict("look", say(text).format(records=say.count(truncated, "record")))
    parts = []
    for name, source in sources.items():
        if thinking := source.get("noticed", {}).get("thinking"):
            records = source["records"]
            total = max(1, records["read"] - records["rejected"] - records["cleaned"])
            parts.append(f"{name} {percent(min(1.0, thinking / total), 1)}")
    if parts:
        text = "Records with reasoning, before duplicates are removed: {parts}."
        yield Verdict("good", say(text).format(parts=say.join(parts)))
    losses = [
        (source["records"][fate] / source["records"]["read"], name, fate)
        for name, source in sources.items()
        for fate in _FATE_WORDS
        if source["records"][fate] > _NOTABLE * source["records"]["read"]
    ]
    for share, name, fate in sorted(losses, key=lambda loss: -loss[0])[:5]:
        reasons = sorted(sources[name][f"{fate}_by"].items(), key=lambda item: -item[1])
        why = say.join([f"{reason} {n:,}" for reason, n in reasons[:3] if n])
        records = say.count(sources[name]["records"][fate], "record")
        text = say(_FATE_WORDS[fate]).format(records=records, source=name, share=percent(share, 1), why=why)
        yield Verdict("look", text)
