"""The report's opening: what a person wants to know first, as sentences with numbers in them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

FATES = ("used", "unused", "validation", "dropped", "removed", "cleaned", "rejected")
_SEEN = 0.05  # a share of a source's records above which a loss is worth a sentence of its own


@dataclass(frozen=True)
class Verdict:
    """One sentence; ``look`` marks what a person should think about."""

    tone: Literal["good", "look"]
    sentence: str


def verdicts(manifest: dict[str, Any]) -> list[Verdict]:
    """What became of the recipe, the most important first."""
    return [
        *_shares(manifest),
        *_records(manifest),
        *_scarcity(manifest),
        *_rows(manifest),
        *_losses(manifest),
    ]


def percent(share: float, digits: int = 2) -> str:
    """``0.29984`` -> ``29.98 %``."""
    return f"{share * 100:.{digits}f} %"


def plural(count: int, noun: str) -> str:
    """``plural(1204, "record")`` -> ``1,204 records``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def unit_words(unit: str) -> str:
    """``loss_tokens`` -> ``loss tokens``."""
    return unit.replace("_", " ")


def _amount(value: float, unit: str) -> str:
    return f"{value:,.2f}" if unit == "records" else f"{math.ceil(value):,}"


def _shares(manifest: dict[str, Any]) -> list[Verdict]:
    mixture = manifest["mixture"]
    unit, bound, worst = mixture["unit"], mixture["bound"], mixture["max_prefix_deviation"]
    told = [
        f"{name} asked {percent(source['share']['asked'], 1)}, reached {percent(source['share'][unit])}"
        for name, source in manifest["sources"].items()
        if source["share"]["asked"]
    ]
    parts = "; ".join(told[:6]) + (f"; and {len(told) - 6} more below" if len(told) > 6 else "")
    limit = f"{_amount(bound, unit)} {unit_words(unit)}"
    if worst > bound:
        return [
            Verdict(
                "look",
                f"{parts} of {unit_words(unit)}; a prefix strayed {_amount(worst, unit)}, beyond {limit}.",
            )
        ]
    within = f"no prefix strayed more than {_amount(worst, unit)} of at most {limit}"
    return [Verdict("good", f"{parts} of {unit_words(unit)}; {within}.")]


def _records(manifest: dict[str, Any]) -> list[Verdict]:
    total = {fate: sum(s["records"][fate] for s in manifest["sources"].values()) for fate in ("read", *FATES)}
    lost = total["read"] - sum(total[fate] for fate in FATES)
    if lost:
        return [
            Verdict(
                "look", f"{plural(abs(lost), 'record')} cannot be accounted for: the ledger does not balance."
            )
        ]
    rest = total["read"] - total["used"]
    held = f", {total['validation']:,} of them in validation/" if total["validation"] else ""
    told = f"Of {plural(total['read'], 'record')} read, {total['used']:,} stand in train/"
    return [Verdict("good", f"{told}; each of the other {rest:,} is accounted for{held}.")]


def _scarcity(manifest: dict[str, Any]) -> list[Verdict]:
    sources, found = manifest["sources"], []
    for name, source in sources.items():
        if source["epochs"] > 1 + 1e-9:
            found.append(
                Verdict(
                    "look",
                    f"{name} is repeated: each of its records is used {source['epochs']:.2f} times on average.",
                )
            )
    binding = manifest["mixture"].get("binding")
    for name, source in sources.items():
        unused = source.get("unused_by", {}).get("not_needed", 0)
        usable = source["records"]["used"] + unused
        if binding and binding != name and usable and unused / usable > _SEEN:
            told = f"{unused:,} usable records of {name} ({percent(unused / usable, 1)}) were not needed"
            found.append(Verdict("look", f"{told}: {binding} ran out first and sets the size of the set."))
    return found


def _rows(manifest: dict[str, Any]) -> list[Verdict]:
    packing, found = manifest["packing"], []
    if packing["strategy"] != "none" and packing["fill"] is not None:
        told = f"{plural(packing['rows'], 'row')} of at most {packing['max_length']:,} tokens are {percent(packing['fill'], 1)} full"
        cut = (
            f"; {plural(packing['cut_records'], 'record')} had to be cut"
            if packing["cut_records"]
            else "; no record was cut"
        )
        found.append(Verdict("good" if packing["fill"] > 0.9 else "look", f"{told}{cut}."))
    truncated = sum(s["truncated"] for s in manifest["sources"].values())
    if truncated:
        found.append(Verdict("look", f"{plural(truncated, 'record')} lost tokens to max_length but stayed."))
    return found


def _losses(manifest: dict[str, Any]) -> list[Verdict]:
    found: list[tuple[float, Verdict]] = []
    words = {"rejected": "could not be read or shaped", "cleaned": "were dropped by cleaning", "removed": "were removed", "dropped": "could not be encoded as asked"}  # fmt: skip
    for name, source in manifest["sources"].items():
        read = source["records"]["read"]
        for fate, said in words.items():
            count = source["records"][fate]
            if read and count / read > _SEEN:
                reasons = sorted(source[f"{fate}_by"].items(), key=lambda item: -item[1])
                why = ", ".join(f"{reason} {n:,}" for reason, n in reasons[:3] if n)
                told = f"{plural(count, 'record')} of {name} ({percent(count / read, 1)}) {said}: {why}."
                found.append((count / read, Verdict("look", told)))
    return [verdict for _, verdict in sorted(found, key=lambda item: -item[0])[:5]]
