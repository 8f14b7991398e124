"""What each source could give, as far as the emitted rows and the ledger show it.

Passes over a source are whole: once any of its rows came twice, or none of its records was left over, all of it was
emitted, and its distinct pieces add up to ``available``. Else the pieces are a lower bound. Of records that give several
rows (scored answers) the pieces cannot be told apart. Cost: 17 bytes a piece emitted.
"""

from __future__ import annotations

from typing import Any

from datamix.audit.fates import UseCounts
from datamix.audit.findings import Findings
from datamix.audit.unchecked import Unchecked

_AMOUNTS = ("rows", "records", "tokens", "loss_tokens")


def check_available(manifest: dict[str, Any], uses: UseCounts, found: Findings) -> list[Unchecked]:
    """Add what is wrong of ``available`` to ``found``; what could not be derived is returned."""
    open_claims: list[Unchecked] = []
    for index, (name, source) in enumerate(manifest["sources"].items()):
        available = source["available"]
        pool = live_records(source)
        places = tuple(f"sources.{name}.available.{unit}" for unit in _AMOUNTS)
        all_once = pool == source["records"]["used"] == source["emitted"]["records"]
        if gives_several(manifest, source) and all_once:
            found.expect(f"{name}: available records", available["records"], pool)
            continue
        if manifest.get("virtual") or (gives_several(manifest, source) and source["emitted"]["rows"]):
            text = f"available of {name}"
            if not manifest.get("virtual"):
                text += ", and max_epochs: its records give several rows"
                places += (f"recipe.sources.{name}.max_epochs",)
            open_claims.append(Unchecked(text, places))
            continue
        distinct = uses.distinct[index].tolist()
        is_cut = manifest["kind"] == "pretrain"
        if not is_cut:
            found.expect(f"{name}: available records", available["records"], pool)
            if manifest["packing"]["strategy"] == "none":
                found.expect(f"{name}: available rows", available["rows"], pool)
        repeated = source["emitted"]["rows"] > distinct[0]
        if repeated or (not is_cut and pool == source["records"]["used"]):
            for unit, amount in zip(_AMOUNTS, distinct, strict=True):
                found.expect(f"{name}: available {unit}", available[unit], amount)
            continue
        for unit, amount in zip(_AMOUNTS, distinct, strict=True):
            if available[unit] < amount:
                found.add(
                    f"{name}: available {unit} is at least {amount:,}, the manifest says {available[unit]:,}"
                )
        exact = (
            ()
            if is_cut
            else ("records", "rows")
            if manifest["packing"]["strategy"] == "none"
            else ("records",)
        )
        left = [unit for unit in _AMOUNTS if unit not in exact]
        places = tuple(f"sources.{name}.available.{unit}" for unit in left)
        open_claims.append(
            Unchecked(f"available {', '.join(left)} of {name} beyond what was emitted", places)
        )
    return open_claims


def live_records(source: dict[str, Any]) -> int:
    """Records of a source that were used or could have been."""
    records, unused_by = source["records"], source.get("unused_by")
    return int(records["used"] + (records["unused"] if unused_by is None else unused_by.get("not_needed", 0)))


def gives_several(manifest: dict[str, Any], source: dict[str, Any]) -> bool:
    """Whether, by the manifest, records of a source give several rows each (scored answers)."""
    return bool(source["available"]["records"] > live_records(source) and manifest["kind"] != "pretrain")
