"""The record of a run: what went in, what became of it, what came out. Written last.

Every number of emitted rows is the one that the write tasks recounted from the labels; it must equal what the integers
give, or the build stops. No time, host, user, absolute path, engine or worker count is in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from datamix import __version__
from datamix.core.arrays import open_batch
from datamix.core.content import files_digest
from datamix.core.contracts import UNITS, Receipt, Task
from datamix.core.errors import DataError
from datamix.pipeline.ledger import Account
from datamix.pipeline.scan import InputFile
from datamix.pipeline.steps import Arranged, Decided, ResolvedBuild
from datamix.pipeline.task_files import CONTAINER_PACKAGES, PACKAGES, STEP_PACKAGES
from datamix.pipeline.write_shards import is_training
from datamix.read import published_path
from datamix.recipe import Recipe

_FATES = ("cleaned", "removed", "dropped", "validation", "used", "unused")
_AMOUNTS = ("rows", *UNITS)
Amounts = dict[tuple[str, str], Counter[str]]  # (stage, source) -> rows, records, tokens, loss_tokens


@dataclass(frozen=True)
class Written:
    """What the files of a set came to."""

    key: str  # of the set
    sample: int | None
    accounts: tuple[Account, ...]  # a source each
    shards: tuple[tuple[Task, Receipt], ...]
    outputs: tuple[dict[str, Any], ...]
    commands: dict[str, str]  # format -> what trains from its folder


def make_manifest(made: ResolvedBuild, written: Written) -> dict[str, Any]:
    """Everything that the contract names, from the receipts of the phases."""
    recipe, tokenizer, decided, arranged = made.recipe, made.tokenizer, made.decided, made.arranged
    emitted = _planned(decided, arranged)
    training = [receipt for task, receipt in written.shards if is_training(task.spec)]
    if recipe.write and _recounted(training) != emitted:
        raise DataError(
            "The rows that were written are not the rows that were planned: a bug in datamix; please report it."
        )
    total, length = sum(emitted.values(), Counter[str]()), recipe.encode.max_length
    is_language = recipe.kind in ("pretrain", "sft")
    containers = {file.container for source in decided.sources for file in source.files}
    extra = {CONTAINER_PACKAGES[c] for c in containers & CONTAINER_PACKAGES.keys()}
    extra |= {STEP_PACKAGES[step.name] for step in recipe.clean if step.name in STEP_PACKAGES}
    return {
        "datamix_version": __version__,
        "name": recipe.name,
        "kind": recipe.kind,
        "seed": recipe.seed,
        "recipe": recipe.published(),
        "recipe_sha256": recipe.sha256(),
        "key": written.key,
        "sample": written.sample,
        "virtual": not recipe.write,
        "packages": {name: version(name) for name in [*PACKAGES, *sorted(extra)]},
        "tokenizer": {
            "name": published_path(recipe.tokenizer),
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "chat_template_sha256": tokenizer.chat_template_sha256,
        },
        "inputs": [
            _input(source.name, file, records)
            for source in decided.sources
            for file, records in zip(source.files, source.file_records, strict=True)
        ],
        "sources": {
            source.name: _source(number, recipe, decided, written.accounts[number], arranged, emitted)
            for number, source in enumerate(decided.sources)
        },
        "mixture": _mixture(recipe, arranged, emitted),
        "packing": {
            "strategy": recipe.encode.pack,
            "max_length": length,
            "rows": total["rows"],
            "fill": total["tokens"] / (total["rows"] * length) if length and is_language else None,
            "cut_records": sum(r.counts["train"]["cut_records"] for r in decided.packed),
        },
        "outputs": sorted(written.outputs, key=lambda o: str(o["path"])),
        "commands": written.commands,
        "content_sha256": files_digest(r.counts["content"] for r in training) if recipe.write else None,
    }


def _recounted(training: Sequence[Receipt]) -> Amounts:
    """Amounts of train/ as the tasks counted them in the Parquet rows that they wrote."""
    total: Amounts = {}
    for receipt in training:
        for name, amounts in receipt.counts["recount"].items():
            stage, source = name.split("|")
            total.setdefault((stage, source), Counter()).update(dict(zip(_AMOUNTS, amounts, strict=True)))
    return total


def _planned(decided: Decided, arranged: Arranged) -> Amounts:
    """The same from the integers: what the order and the bins say."""
    order = open_batch(arranged.order.folder / "order.arrow")
    source_of, row_of = order.column("source").to_numpy(), order.column("row").to_numpy()
    total: Amounts = {}
    start = 0
    for stage, stop in zip(arranged.quota.stages, arranged.order.counts["stage_ends"], strict=True):
        for number, packed in enumerate(decided.packed):
            rows = row_of[start:stop][source_of[start:stop] == number]
            if len(rows):
                bins = open_batch(packed.folder / "train.arrow")
                amounts = {unit: int(bins.column(unit).to_numpy()[rows].sum()) for unit in UNITS}
                total[stage.name, decided.sources[number].name] = Counter(rows=len(rows), **amounts)
        start = stop
    return total


def _input(source: str, file: InputFile, records: int) -> dict[str, Any]:
    return {
        "source": source,
        "path": file.label,
        "bytes": file.num_bytes,
        "sha256": file.sha256,
        "records": records,
        "encoding": file.encoding if file.container not in ("parquet", "arrow", "arrow_stream") else None,
        "container": file.container,
        "compression": file.compression,
        "format": file.format,
    }


def _source(
    number: int,
    recipe: Recipe,
    decided: Decided,
    settled: Account,
    arranged: Arranged,
    emitted: Amounts,
) -> dict[str, Any]:
    source, packed = decided.sources[number], decided.packed[number].counts["train"]
    rejected = source.count("rejected_by")
    records = {"read": sum(source.file_records), "rejected": rejected.total()}
    amounts = sum((c for (_, name), c in emitted.items() if name == source.name), Counter[str]())
    total = sum(emitted.values(), Counter[str]())
    available = {unit: packed["pieces" if unit == "records" else unit] for unit in _AMOUNTS}
    shares = {unit: amounts[unit] / total[unit] if total[unit] else 0.0 for unit in _AMOUNTS}
    share = {"asked": arranged.quota.shares[number] if number < len(arranged.quota.shares) else 0.0}
    share |= {unit: shares[unit] for unit in UNITS}
    if (
        recipe.mix.averaged_over is not None
    ):  # of the loss, under the mean that the recipe says is taken in the end
        share["effective"] = shares["rows" if recipe.mix.averaged_over == "example" else "loss_tokens"]
    # what encoding met, before deduplication; of the chat template's refusals also its messages
    noticed: Counter[str] = Counter()
    for receipt in source.encoded:
        noticed.update(receipt.counts["found"])
    thinking = sum(receipt.counts.get("thinking", 0) for receipt in source.prepared)
    if thinking:
        noticed["thinking"] = thinking
    return {
        "records": records | {fate: settled.counts.get(fate, 0) for fate in _FATES},
        "rejected_by": dict(sorted(rejected.items())),
        "cleaned_by": settled.reasons.get("cleaned", {}),
        "mended_by": dict(sorted(source.count("mended_by").items())),
        **{f"{fate}_by": settled.reasons.get(fate, {}) for fate in ("removed", "dropped", "unused")},
        "noticed": dict(sorted(noticed.items())),
        "truncated": packed["truncated"],
        "available": available,
        "emitted": {name: amounts[name] for name in _AMOUNTS},
        "epochs": amounts[recipe.unit] / available[recipe.unit] if available[recipe.unit] else 0.0,
        "share": share,
    }


def _mixture(recipe: Recipe, arranged: Arranged, emitted: Amounts) -> dict[str, Any]:
    names, quota = list(recipe.sources), arranged.quota
    total = sum(s.length for s in quota.stages)
    stages: list[dict[str, Any]] = []
    for stage in quota.stages:
        amounts = sum((c for (name, _), c in emitted.items() if name == stage.name), Counter[str]())
        entry: dict[str, Any] = {"name": stage.name, "share": stage.length / total, "size": stage.length}
        entry["weights"] = dict(zip(names, stage.ramp_to or stage.weights, strict=True))
        if stage.ramp_to is not None:
            entry |= {"ramp": "linear", "ramp_from": dict(zip(names, stage.weights, strict=True))}
        stages.append({**entry, **{name: amounts[name] for name in _AMOUNTS}})
    counts = arranged.order.counts
    return {
        "unit": recipe.mix.unit,
        "bound": counts["bound"],
        "max_prefix_deviation": counts["max_prefix_deviation"],
        "binding": quota.binding[0] if quota.binding else None,
        "stages": stages,
    }
