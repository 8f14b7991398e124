"""Recount a finished set from its own files and hold every promise of its manifest against the count.

The manifest is a list of claims here and never evidence: files are hashed, every row is decoded once, and each number
is derived again from tensors, record ids and audit files. Cost: one read of the set; memory does not grow with it but
for about 13 bytes a record.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix.audit.available import check_available, gives_several
from datamix.audit.fates import RECORD_FATES, Ledger, UseCounts
from datamix.audit.findings import Check, Findings, first_line
from datamix.audit.listed_files import check_files, check_manifest, check_tokenizer
from datamix.audit.prefix import read_stages
from datamix.audit.recipe_claims import check_claims
from datamix.audit.recount import AMOUNTS, Recount, RowShard
from datamix.audit.rederive import check_inputs
from datamix.audit.unchecked import Unchecked, unchecked, unchecked_claims
from datamix.core.content import files_digest
from datamix.core.errors import RecipeError
from datamix.pipeline.opening import built_set, refuse_newer
from datamix.pipeline.rows import RowReader


def verify(out: Path, inputs: float | None = None) -> list[Check]:
    """Recount everything that the manifest of ``out`` claims; one check a promise.

    ``inputs``: also hold the raw files against it, and make this share of the rows again from them (1: all).

    Raises RecipeError where ``out`` is not a folder, DataError where a newer major version built it.
    """
    if not out.is_dir():
        raise RecipeError(f"There is no folder {out} to verify. Name the OUT folder of a finished build.")
    if not (out / "manifest.json").is_file():
        told = "manifest.json is missing: the set is not whole. Run `datamix build` again; it continues"
        return [Check("manifest", False, told)]
    try:
        manifest = json.loads((out / "manifest.json").read_bytes())
    except ValueError as error:
        return [Check("manifest", False, f"manifest.json is not JSON: {error}")]
    if isinstance(manifest, dict):
        refuse_newer(out, manifest)
    first = check_manifest(manifest)
    if not first.ok:
        return [first]
    checks, claims = checks_and_claims(out, manifest, inputs)
    return [first, *checks, unchecked(claims)]


def checks_and_claims(
    out: Path, manifest: dict[str, Any], inputs: float | None = None
) -> tuple[list[Check], list[Unchecked]]:
    """Every check of a manifest that follows its schema, and the claims that none of them derived."""
    claims: list[Unchecked] = []
    checks = [
        check_files(out, manifest),
        check_tokenizer(out, manifest),
        *check_claims(out, manifest),
        *_recounted(out, manifest, claims),
    ]
    if inputs is not None:
        checks += check_inputs(out, manifest, inputs, claims)
    return checks, unchecked_claims(manifest, inputs, claims)


def _recounted(out: Path, manifest: dict[str, Any], claims: list[Unchecked]) -> list[Check]:
    recount = Recount.of(manifest, out)
    for shard in _shards(out, manifest, "train"):
        recount.add_train(shard)
    uses = recount.uses.count(_piece_caps(manifest))
    ledger = _read_ledger(out, manifest, recount, uses)
    counts = ledger.counts()
    order = recount.order.check(manifest, ledger)
    available = Findings("counts")
    claims += check_available(manifest, uses, available)
    claims += [*recount.order.unchecked, *recount.unchecked()]
    return [
        _check_content(manifest, recount),
        recount.laws.check(f"{int(recount.by_source[:, 0].sum()):,} rows obey every law of their kind"),
        _check_masks(recount),
        recount.owners.check("every record belongs to the source of its row"),
        _check_counts(manifest, recount, available),
        _check_shares(manifest, recount),
        *([recount.weights.check()] if recount.weights else []),
        _check_stages(manifest, recount),
        _check_prefix(manifest, recount),
        _check_epochs(manifest, recount, uses),
        _check_ledger(manifest, ledger, counts),
        _check_split(ledger, uses, counts),
        *([order] if order else []),
        _check_packing(manifest, recount, uses),
    ]


def _shards(out: Path, manifest: dict[str, Any], split: str) -> list[RowShard]:
    """The Parquet files of one split that are there, as listed; a missing one is told by the file check."""
    if split == "train" and manifest.get("virtual"):
        rows = built_set(out, manifest).splits["train"]
        return [RowShard(out, "the virtual set", RowReader(rows))]
    return [RowShard(out / p, p) for p in _listed(out, manifest, split) if p.endswith(".parquet")]


def _max_epochs(manifest: dict[str, Any], name: str) -> float:
    return float(manifest["recipe"]["sources"].get(name, {}).get("max_epochs", 1.0))


def _piece_caps(manifest: dict[str, Any]) -> list[float]:
    """How often each piece of a source may stand in train/; infinite where one record gave several."""
    caps: list[float] = []
    for name, source in manifest["sources"].items():
        caps.append(np.inf if gives_several(manifest, source) else _max_epochs(manifest, name))
    return caps


def _read_ledger(out: Path, manifest: dict[str, Any], recount: Recount, uses: UseCounts) -> Ledger:
    ledger = Ledger(recount.inputs)
    ledger.mark("used", uses.used, "train/")
    for shard in _shards(out, manifest, "validation"):
        ledger.mark("validation", recount.add_validation(shard), shard.name)
    removed = _listed(out, manifest, "removed")
    steps: list[tuple[str, Callable[[], None]]] = [
        (n, partial(ledger.read_removed, out / n, n)) for n in removed
    ]
    rejects = _listed(out, manifest, "rejects")
    steps += [(n, partial(ledger.read_rejects, out / n, Path(n).stem, n)) for n in rejects]
    steps += [(n, partial(ledger.check_kept, out / n, n)) for n in removed]
    for name, step in steps:
        try:
            step()
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
        ) as error:  # a line that is damaged or of another shape
            ledger.found.add(f"{name} cannot be read: {first_line(error)}")
    return ledger


def _listed(out: Path, manifest: dict[str, Any], folder: str) -> list[str]:
    paths = sorted(e["path"] for e in manifest["outputs"])
    return [p for p in paths if p.startswith(f"{folder}/") and (out / p).is_file()]


def _check_content(manifest: dict[str, Any], recount: Recount) -> Check:
    if manifest["content_sha256"] is None:
        return Check("content", True, "a virtual set: its rows lie in the cache and were recounted there")
    found = Findings("content")
    found.expect("the hash of the decoded rows", manifest["content_sha256"], files_digest(recount.content))
    return found.check("the decoded rows hash to content_sha256")


def _check_masks(recount: Recount) -> Check:
    turns = recount.turns
    if turns.telling:
        recount.masks.add(turns.first_odd, turns.num_odd)
    closed = f"; {turns.num_spans:,} trained spans end where turns end" if turns.telling else ""
    starts = recount.starts
    if starts.header is not None:
        recount.masks.add(starts.first_opened, starts.num_opened)
    if starts.telling:
        recount.masks.add(starts.first_odd, starts.num_odd)
        closed += (
            f"; {starts.num_sound:,} begin behind the header of an assistant's turn and hold no other turn's"
        )
    return recount.masks.check(f"every row trains something{closed}")


def _check_counts(manifest: dict[str, Any], recount: Recount, found: Findings) -> Check:
    for index, name in enumerate(recount.inputs.names):
        claims = manifest["sources"][name]["emitted"]
        for column, unit in enumerate(AMOUNTS):
            found.expect(f"{name}: emitted {unit}", claims[unit], int(recount.by_source[index, column]))
    rows, _, tokens, loss = (int(n) for n in recount.by_source.sum(axis=0))
    return found.check(
        f"{rows:,} rows, {tokens:,} tokens, {loss:,} loss tokens: as the manifest says, source by source"
    )


def _check_shares(manifest: dict[str, Any], recount: Recount) -> Check:
    found = Findings("shares")
    stages = manifest["mixture"]["stages"]
    plans = read_stages(manifest["mixture"], list(recount.inputs.names))
    told = []
    for index, name in enumerate(recount.inputs.names):
        claims = manifest["sources"][name]["share"]
        for unit in AMOUNTS[1:]:
            found.expect(f"{name}: share of {unit}", claims[unit], _share(recount.by_source, index, unit))
        asked = sum(
            float(stage["share"] * plan.shares[index]) for stage, plan in zip(stages, plans, strict=True)
        )
        found.expect(f"{name}: share asked by the stages", claims["asked"], asked)
        reached = _share(recount.by_source, index, recount.unit)
        told.append(f"{name} asked {asked:.2%} reached {reached:.2%}")
    return found.check(f"of {recount.unit}: " + ", ".join(told))


def _share(by_source: NDArray[np.int64], index: int, unit: str) -> float:
    column = by_source[:, AMOUNTS.index(unit)]
    return float(column[index] / column.sum()) if column.sum() else 0.0


def _check_stages(manifest: dict[str, Any], recount: Recount) -> Check:
    found = recount.stages
    stages = manifest["mixture"]["stages"]
    for index, stage in enumerate(stages):
        for unit in (unit for unit in AMOUNTS if unit in stage):
            counted = int(recount.by_stage[index, AMOUNTS.index(unit)])
            found.expect(f"stage {stage['name']}: {unit}", stage[unit], counted)
        if abs(sum(stage["weights"].values()) - 1) > 1e-6:
            found.add(
                f"stage {stage['name']}: its weights sum to {sum(stage['weights'].values()):.6g}, not to 1"
            )
    if abs(sum(stage["share"] for stage in stages) - 1) > 1e-6:
        found.add(f"the shares of the stages sum to {sum(s['share'] for s in stages):.6g}, not to 1")
    return found.check(
        ", ".join(f"{s['name']} {s['rows']:,} rows" for s in stages) + ": in this order, as counted"
    )


def _check_prefix(manifest: dict[str, Any], recount: Recount) -> Check:
    found = Findings("prefix bound")
    mixture, worst = manifest["mixture"], recount.prefix.worst
    row, source = recount.prefix.worst_at
    where = f"after row {row:,} {recount.inputs.names[source]} strays {worst:,.1f} {recount.unit}"
    if worst > mixture["bound"] + 1e-6 * max(1.0, mixture["bound"]):
        found.add(f"{where}, more than the bound of {mixture['bound']:,.1f}")
    limit = max(recount.largest, _largest_row(manifest))
    if mixture["bound"] > limit:
        found.add(f"the manifest's bound of {mixture['bound']:,.1f} is more than the largest row, {limit:,}")
    claimed = mixture["max_prefix_deviation"]
    if abs(claimed - worst) > 1e-6 * max(1.0, worst):
        found.add(f"{where}, the manifest says {claimed:,.6f}")
    return found.check(
        f"no prefix strays more than {worst:,.1f} {recount.unit}, of at most {mixture['bound']:,.1f}"
    )


def _largest_row(manifest: dict[str, Any]) -> int:
    """The most that a row could weigh: rows that were not needed may be larger than those emitted."""
    length = manifest["recipe"]["encode"].get("max_length")
    if manifest["mixture"]["unit"] == "records" and manifest["packing"]["strategy"] == "none":
        return 1
    return 2 * int(length) if length and manifest["kind"] == "preference" else int(length or 0)


def _check_epochs(manifest: dict[str, Any], recount: Recount, uses: UseCounts) -> Check:
    found = Findings("epochs")
    inputs = recount.inputs
    if len(uses.too_often):
        told = inputs.record(int(uses.too_often[0]))
        found.add(f"{told} is used more often than max_epochs allows", len(uses.too_often))
    if len(uses.overlapping):
        told = inputs.record(int(uses.overlapping[0]))
        found.add(f"{told} is emitted in parts that share tokens", len(uses.overlapping))
    column = AMOUNTS.index(recount.unit)
    for index, name in enumerate(inputs.names):
        source = manifest["sources"][name]
        limit = _max_epochs(manifest, name) * source["available"]["rows"]
        if recount.by_source[index, 0] > limit + 1e-6:
            found.add(
                f"{name} has {recount.by_source[index, 0]:,} rows in train/, max_epochs allows {limit:,.0f}"
            )
        there = source["available"][recount.unit]
        epochs = float(recount.by_source[index, column] / there) if there else 0.0
        found.expect(f"{name}: epochs", float(source["epochs"]), epochs)
    return found.check(f"no record is used more than {uses.most} times, none above its max_epochs")


def _check_ledger(manifest: dict[str, Any], ledger: Ledger, counts: NDArray[np.int64]) -> Check:
    found = ledger.found
    lost = np.flatnonzero(ledger.fate == 0)
    if len(lost):
        found.add(
            f"{ledger.inputs.record(int(lost[0]))} was read and has no line in rejects/ or removed/",
            len(lost),
        )
    for index, name in enumerate(ledger.inputs.names):
        claims = manifest["sources"][name]
        for fate in RECORD_FATES[1:]:
            found.expect(
                f"{name}: records {fate}",
                claims["records"][fate],
                int(counts[index, RECORD_FATES.index(fate)]),
            )
        read = sum(e["records"] for e in manifest["inputs"] if e["source"] == name)
        found.expect(f"{name}: records read", claims["records"]["read"], read)
        for key, reasons in ledger.reasons.items():
            counted = {reason: n for (source, reason), n in reasons.items() if source == name}
            claimed = claims.get(key, {})
            for reason in sorted({*counted, *claimed}):
                found.expect(f"{name}: {key} {reason}", claimed.get(reason, 0), counted.get(reason, 0))
    total = counts.sum(axis=0)
    parts = " + ".join(f"{int(total[i]):,} {fate}" for i, fate in enumerate(RECORD_FATES) if i)
    return found.check(f"{len(ledger.fate):,} records read = {parts}; each has its line or its row")


def _check_split(ledger: Ledger, uses: UseCounts, counts: NDArray[np.int64]) -> Check:
    found = Findings("split")
    both = uses.used[ledger.fate[uses.used] == RECORD_FATES.index("validation")]
    if len(both):
        found.add(f"{ledger.inputs.record(int(both[0]))} stands in train/ and in validation/", len(both))
    held = int(counts[:, RECORD_FATES.index("validation")].sum())
    return found.check(f"{held:,} validation records, none of them in train/")


def _check_packing(manifest: dict[str, Any], recount: Recount, uses: UseCounts) -> Check:
    found = Findings("packing")
    packing = manifest["packing"]
    rows, _, tokens, _ = (int(n) for n in recount.by_source.sum(axis=0))
    found.expect("the number of rows", packing["rows"], rows)
    length = packing["max_length"]
    if length and packing["fill"] is not None:
        found.expect("the fill", float(packing["fill"]), tokens / (rows * length) if rows else 0.0)
    if packing["strategy"] == "none" and manifest["kind"] != "pretrain" and len(uses.cut):
        found.add(f"{recount.inputs.record(int(uses.cut[0]))} is cut, yet nothing is packed", len(uses.cut))
    if packing["strategy"] == "none" and manifest["kind"] != "pretrain":
        found.expect("the number of cut records", packing["cut_records"], 0)
    if len(uses.cut) > packing["cut_records"]:
        found.add(
            f"{len(uses.cut):,} records are cut in train/, the manifest says {packing['cut_records']:,}"
        )
    fill = f", {packing['fill']:.1%} full" if packing["fill"] is not None else ""
    return found.check(f"{packing['strategy']}: {rows:,} rows{fill}, {packing['cut_records']:,} records cut")
