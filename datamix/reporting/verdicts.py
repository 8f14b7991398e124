"""The report's opening: what a person wants to know first, as sentences with numbers in them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

SHOWN_FATES = ("used", "unused", "validation", "dropped", "removed", "cleaned", "rejected")
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
        f"{name} asked {percent(asked, 1)}, reached {percent(reached)}"
        for name, (asked, reached) in _by_group(manifest, unit).items()
        if asked
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


def _by_group(manifest: dict[str, Any], unit: str) -> dict[str, tuple[float, float]]:
    """Asked and reached shares as the recipe weighs them: sources of a group count together."""
    found: dict[str, tuple[float, float]] = {}
    for name, source in manifest["sources"].items():
        group = manifest["recipe"]["sources"].get(name, {}).get("group") or name
        asked, reached = found.get(group, (0.0, 0.0))
        found[group] = (asked + source["share"]["asked"], reached + source["share"][unit])
    return found


def _records(manifest: dict[str, Any]) -> list[Verdict]:
    total = {
        fate: sum(s["records"][fate] for s in manifest["sources"].values()) for fate in ("read", *SHOWN_FATES)
    }
    lost = total["read"] - sum(total[fate] for fate in SHOWN_FATES)
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
    spare = {
        n: (s.get("unused_by", {}).get("not_needed", 0), s["records"]["used"]) for n, s in sources.items()
    }
    told = [
        f"{name} {unused:,} ({percent(unused / (unused + used), 1)})"
        for name, (unused, used) in spare.items()
        if name != binding and unused > _SEEN * (unused + used)
    ]
    if binding and told:
        parts = ", ".join(told[:5]) + (f" and {len(told) - 5} more sources" if len(told) > 5 else "")
        found.append(
            Verdict(
                "look",
                f"Usable records that were not needed: {parts}. {binding} ran out first and sets the size.",
            )
        )
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
    words = {"rejected": "not readable or in no known shape", "cleaned": "dropped by cleaning", "removed": "removed", "dropped": "not encodable as asked"}  # fmt: skip
    for name, source in manifest["sources"].items():
        read = source["records"]["read"]
        for fate, said in words.items():
            count = source["records"][fate]
            if read and count / read > _SEEN:
                reasons = sorted(source[f"{fate}_by"].items(), key=lambda item: -item[1])
                why = ", ".join(f"{reason} {n:,}" for reason, n in reasons[:3] if n)
                told = f"{plural(count, 'record')} of {name} {said} ({percent(count / read, 1)}): {why}."
                found.append((count / read, Verdict("look", told)))
    return [verdict for _, verdict in sorted(found, key=lambda item: -item[0])[:5]]
