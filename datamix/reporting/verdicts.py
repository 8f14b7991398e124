"""The report's opening: what a person wants to know first, as sentences with numbers in them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

SHOWN_FATES = ("used", "unused", "validation", "dropped", "removed", "cleaned", "rejected")
_NOTABLE = 0.05  # a share of a source's records above which a loss is worth a sentence of its own
_FATE_WORDS = {
    "rejected": "not readable or in no known shape",
    "cleaned": "dropped by cleaning",
    "removed": "removed",
    "dropped": "not encodable as asked",
}


@dataclass(frozen=True)
class Verdict:
    """One sentence; ``look`` marks what a person should think about."""

    tone: Literal["good", "look"]
    sentence: str


def percent(share: float, digits: int = 2) -> str:
    """``0.29984`` -> ``29.98 %``."""
    return f"{share * 100:.{digits}f} %"


def plural(count: int, noun: str) -> str:
    """``plural(1204, "record")`` -> ``1,204 records``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def unit_words(unit: str) -> str:
    """``loss_tokens`` -> ``loss tokens``."""
    return unit.replace("_", " ")


def verdicts(manifest: dict[str, Any]) -> list[Verdict]:
    """What became of the recipe, the most important first; sources of a group count together, as the recipe weighs them."""
    mixture, sources = manifest["mixture"], manifest["sources"]
    unit = mixture["unit"]
    shares: dict[str, tuple[float, float]] = {}
    for name, source in sources.items():
        group = manifest["recipe"]["sources"].get(name, {}).get("group") or name
        asked, reached = shares.get(group, (0.0, 0.0))
        shares[group] = (asked + source["share"]["asked"], reached + source["share"][unit])
    parts = [
        f"{n} asked {percent(asked, 1)}, reached {percent(got)}"
        for n, (asked, got) in shares.items()
        if asked
    ]
    more = f"; and {len(parts) - 6} more below" if len(parts) > 6 else ""
    worst, bound = (
        f"{value:,.2f}" if unit == "records" else f"{math.ceil(value):,}"
        for value in (mixture["max_prefix_deviation"], mixture["bound"])
    )
    start = f"{'; '.join(parts[:6])}{more} of {unit_words(unit)}; "
    limit = f"{bound} {unit_words(unit)}"
    if mixture["max_prefix_deviation"] > mixture["bound"]:
        opening = [Verdict("look", f"{start}a prefix strayed {worst}, beyond {limit}.")]
    else:
        opening = [Verdict("good", f"{start}no prefix strayed more than {worst} of at most {limit}.")]
    fates = {
        fate: sum(s["records"][fate] for s in sources.values()) for fate in ("read", "validation", "used")
    }
    lost = fates["read"] - sum(s["records"][fate] for s in sources.values() for fate in SHOWN_FATES)
    if lost:
        records = plural(abs(lost), "record")
        opening.append(Verdict("look", f"{records} cannot be accounted for: the ledger does not balance."))
    else:
        held_out = f", {fates['validation']:,} of them in validation/" if fates["validation"] else ""
        rest = f"each of the other {fates['read'] - fates['used']:,} is accounted for{held_out}"
        records = f"Of {plural(fates['read'], 'record')} read, {fates['used']:,} are in train/"
        opening.append(Verdict("good", f"{records}; {rest}."))
    return [*opening, *_remarks(manifest)]


def _remarks(manifest: dict[str, Any]) -> Iterator[Verdict]:
    """Sources that are repeated or left over, how full rows are, and the largest losses of records."""
    sources, binding, packing = manifest["sources"], manifest["mixture"].get("binding"), manifest["packing"]
    spare = []
    for name, source in sources.items():
        if source["epochs"] > 1 + 1e-9:
            times = f"each of its records is used {source['epochs']:.2f} times on average"
            yield Verdict("look", f"{name} is repeated: {times}.")
        unused, used = source.get("unused_by", {}).get("not_needed", 0), source["records"]["used"]
        if name != binding and unused > _NOTABLE * (unused + used):
            spare.append(f"{name} {unused:,} ({percent(unused / (unused + used), 1)})")
    if binding and spare:
        parts = ", ".join(spare[:5]) + (f" and {len(spare) - 5} more sources" if len(spare) > 5 else "")
        yield Verdict(
            "look",
            f"Usable records that were not needed: {parts}. {binding} ran out first and sets the size.",
        )
    if packing["strategy"] != "none" and packing["fill"] is not None:
        rows = f"{plural(packing['rows'], 'row')} of at most {packing['max_length']:,} tokens"
        cut = "no record was cut"
        if packing["cut_records"]:
            cut = f"{plural(packing['cut_records'], 'record')} had to be cut"
        tone: Literal["good", "look"] = "good" if packing["fill"] > 0.9 else "look"
        yield Verdict(tone, f"{rows} are {percent(packing['fill'], 1)} full; {cut}.")
    truncated = sum(s["truncated"] for s in sources.values())
    if truncated:
        yield Verdict("look", f"{plural(truncated, 'record')} lost tokens to max_length but stayed.")
    losses = [
        (source["records"][fate] / source["records"]["read"], name, fate)
        for name, source in sources.items()
        for fate in _FATE_WORDS
        if source["records"][fate] > _NOTABLE * source["records"]["read"]
    ]
    for share, name, fate in sorted(losses, key=lambda loss: -loss[0])[:5]:
        reasons = sorted(sources[name][f"{fate}_by"].items(), key=lambda item: -item[1])
        why = ", ".join(f"{reason} {n:,}" for reason, n in reasons[:3] if n)
        records = plural(sources[name]["records"][fate], "record")
        yield Verdict("look", f"{records} of {name} {_FATE_WORDS[fate]} ({percent(share, 1)}): {why}.")
