"""Recount a finished set from its own files and hold every promise of its manifest against the count.

The manifest is a list of claims here and never evidence: files are hashed, every row is decoded once, and each number
is derived again from tensors, record ids and audit files. Cost: one read of the set; memory does not grow with it but
for about 13 bytes a record.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from datamix.audit.fates import (
    AMOUNTS,
    DUPLICATE,
    RECORD_FATES,
    Ledger,
    UseCounts,
    check_available,
    gives_several,
)
from datamix.audit.findings import Check, Findings, Unchecked, unchecked_claims
from datamix.audit.listed_files import check_files, check_manifest, check_tokenizer
from datamix.audit.prefix import read_stages
from datamix.audit.recipe_claims import check_claims, check_excluded
from datamix.audit.recount import Recount, RowShard
from datamix.audit.rederive import check_inputs
from datamix.core.errors import DataError, RecipeError
from datamix.core.set_files import check_listed
from datamix.pipeline.built_sets import built_set, refuse_newer
from datamix.pipeline.rows import RowReader


def verify(out: Path, inputs: float | None = None) -> list[Check]:
    """Recount everything that the manifest of ``out`` claims; one check a promise.

    ``inputs``: also hold the raw files against it, and encode the records of this share of the rows again (1: all).

    Raises RecipeError where ``out`` is not a folder, DataError where a newer major version built it.
    """
    if not out.is_dir():
        raise RecipeError(f"There is no folder {out} to verify. Name the OUT folder of a finished build.")
    if not (out / "manifest.json").is_file():
        detail = "manifest.json is missing: the set is not whole. Run `datamix build` again; it continues"
        return [Check("manifest", False, detail)]
    try:
        manifest = json.loads((out / "manifest.json").read_bytes())
    except ValueError as error:
        return [Check("manifest", False, f"manifest.json is not JSON: {error}")]
    if isinstance(manifest, dict):
        refuse_newer(out, manifest)
    first = check_manifest(manifest)
    if not first.ok:
        return [first]
    try:
        check_listed(out, manifest)
    except DataError as error:
        return [first, Check("files", False, str(error))]
    checks, claims = checks_and_claims(out, manifest, inputs)
    return [first, *checks, Check("not checked", True, "; ".join(claim.text for claim in claims))]


def checks_and_claims(
    out: Path, manifest: dict[str, Any], inputs: float | None = None
) -> tuple[list[Check], list[Unchecked]]:
    """Every check of a manifest that follows its schema, and the claims that none of them derived."""
    checks = [check_files(out, manifest), check_tokenizer(out, manifest), *check_claims(out, manifest)]
    recount = Recount(manifest, out)
    train = _listed(out, manifest, "train")
    if manifest.get("virtual") and not train:  # once exported, its rows are counted from the files
        rows = RowReader(built_set(out, manifest).splits["train"])
        recount.add_train(RowShard(out, "the virtual set", rows))
    for name in train:
        recount.add_train(RowShard(out / name, name))
    # Of a record that gave several rows, no piece can be used too often.
    caps = (
        np.inf if gives_several(manifest, source) else _max_epochs(manifest, name)
        for name, source in manifest["sources"].items()
    )
    uses = recount.uses.count(caps)
    ledger = Ledger(recount.inputs)
    ledger.mark("used", uses.used, "train/")
    for name in _listed(out, manifest, "validation"):
        ledger.mark("validation", recount.add_validation(RowShard(out / name, name)), name)
    ledger.read_files(out, _listed(out, manifest, "removed"), _listed(out, manifest, "rejects"))
    order = recount.order.check(manifest, ledger)
    row_checks, left_open = recount.check_rows(manifest)
    counts = Findings("counts")
    claims = [*check_available(manifest, uses, counts), *recount.order.unchecked(), *left_open]
    amounts, shares, epochs = _check_sources(manifest, recount, uses, counts)
    checks += [
        *row_checks,
        amounts,
        shares,
        *([recount.weights.check()] if recount.weights else []),
        _check_stages(manifest, recount),
        recount.prefix.check(manifest, recount.inputs.names, recount.largest),
        epochs,
        ledger.check(manifest),
        *_check_split_and_packing(manifest, recount, ledger, uses),
    ]
    if order is not None:
        checks.insert(len(checks) - 1, order)
    if manifest["recipe"].get("exclude"):
        checks.append(check_excluded(manifest, recount.inputs, ledger.fate % DUPLICATE))
    if inputs is not None:
        checks += check_inputs(out, manifest, inputs, claims)
    return checks, unchecked_claims(manifest, inputs, claims)


def _listed(out: Path, manifest: dict[str, Any], folder: str) -> list[str]:
    """The files of a folder that are there, as listed; a missing one is reported by the file check."""
    paths = sorted(e["path"] for e in manifest["outputs"])
    return [p for p in paths if p.startswith(f"{folder}/") and (out / p).is_file()]


def _max_epochs(manifest: dict[str, Any], name: str) -> float:
    return float(manifest["recipe"]["sources"].get(name, {}).get("max_epochs", 1.0))


def _check_sources(
    manifest: dict[str, Any], recount: Recount, uses: UseCounts, counts: Findings
) -> list[Check]:
    """Amounts (into ``counts``), shares asked and reached, and epochs, source by source."""
    shares, epochs, inputs = Findings("shares"), Findings("epochs"), recount.inputs
    often, overlap = "is used more often than max_epochs allows", "is emitted in parts that share tokens"
    epochs.add_first(uses.too_often, lambda number: f"{inputs.record(number)} {often}")
    epochs.add_first(uses.overlapping, lambda number: f"{inputs.record(number)} {overlap}")
    stages, plans = manifest["mixture"]["stages"], read_stages(manifest["mixture"], list(inputs.names))
    total, parts, unit_column = recount.by_source.sum(axis=0), [], AMOUNTS.index(recount.unit)
    for index, (name, amounts) in enumerate(zip(inputs.names, recount.by_source.tolist(), strict=True)):
        claims = manifest["sources"][name]
        reached = [n / int(whole) if whole else 0.0 for n, whole in zip(amounts, total, strict=True)]
        for unit, amount, share in zip(AMOUNTS, amounts, reached, strict=True):
            counts.expect(f"{name}: emitted {unit}", claims["emitted"][unit], amount)
            if unit != "rows":
                shares.expect(f"{name}: share of {unit}", claims["share"][unit], share)
        pairs = zip(stages, plans, strict=True)
        asked = sum(float(stage["share"] * plan.shares[index]) for stage, plan in pairs)
        shares.expect(f"{name}: share asked by the stages", claims["share"]["asked"], asked)
        parts.append(f"{name} asked {asked:.2%} reached {reached[unit_column]:.2%}")
        limit = _max_epochs(manifest, name) * claims["available"]["rows"]
        if amounts[0] > limit + 1e-6:
            epochs.add(f"{name} has {amounts[0]:,} rows in train/, max_epochs allows {limit:,.0f}")
        available = claims["available"][recount.unit]
        used = amounts[unit_column] / available if available else 0.0
        epochs.expect(f"{name}: epochs", float(claims["epochs"]), used)
    rows, _, tokens, loss = total.tolist()
    counted = (
        f"{rows:,} rows, {tokens:,} tokens, {loss:,} loss tokens: as the manifest says, source by source"
    )
    return [
        counts.check(counted),
        shares.check(f"of {recount.unit}: " + ", ".join(parts)),
        epochs.check(f"no record is used more than {uses.most} times, none above its max_epochs"),
    ]


def _check_stages(manifest: dict[str, Any], recount: Recount) -> Check:
    findings, stages = recount.stages, manifest["mixture"]["stages"]
    for index, stage in enumerate(stages):
        for column, unit in enumerate(AMOUNTS):
            if unit in stage:
                counted = int(recount.by_stage[index, column])
                findings.expect(f"stage {stage['name']}: {unit}", stage[unit], counted)
        total = sum(stage["weights"].values())
        if abs(total - 1) > 1e-6:
            findings.add(f"stage {stage['name']}: its weights sum to {total:.6g}, not to 1")
    total = sum(stage["share"] for stage in stages)
    if abs(total - 1) > 1e-6:
        findings.add(f"the shares of the stages sum to {total:.6g}, not to 1")
    rows = ", ".join(f"{s['name']} {s['rows']:,} rows" for s in stages)
    return findings.check(f"{rows}: in this order, as counted")


def _check_split_and_packing(
    manifest: dict[str, Any], recount: Recount, ledger: Ledger, uses: UseCounts
) -> list[Check]:
    """No record is both trained and held out; rows, fill and cut records are as counted."""
    split, packing, inputs = Findings("split"), Findings("packing"), recount.inputs
    held_out = RECORD_FATES.index("validation")
    both = uses.used[ledger.fate[uses.used] == held_out]
    split.add_first(both, lambda number: f"{inputs.record(number)} is in train/ and in validation/")
    num_held_out = int(ledger.counts()[:, held_out].sum())
    claims, tokens = manifest["packing"], int(recount.by_source[:, AMOUNTS.index("tokens")].sum())
    rows, length, cut = int(recount.by_source[:, 0].sum()), claims["max_length"], claims["cut_records"]
    packing.expect("the number of rows", claims["rows"], rows)
    if length and claims["fill"] is not None:
        packing.expect("the fill", float(claims["fill"]), tokens / (rows * length) if rows else 0.0)
    if claims["strategy"] == "none" and manifest["kind"] != "pretrain":
        packing.add_first(uses.cut, lambda number: f"{inputs.record(number)} is cut, yet nothing is packed")
        packing.expect("the number of cut records", cut, 0)
    if len(uses.cut) > cut:
        packing.add(f"{len(uses.cut):,} records are cut in train/, the manifest says {cut:,}")
    fill = f", {claims['fill']:.1%} full" if claims["fill"] is not None else ""
    return [
        split.check(f"{num_held_out:,} validation records, none of them in train/"),
        packing.check(f"{claims['strategy']}: {rows:,} rows{fill}, {cut:,} records cut"),
    ]
