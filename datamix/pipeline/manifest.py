"""The record of a run: what went in, what became of it, what came out. Written last.

Every number of emitted rows is the one that the write tasks recounted from the labels; it must equal what the integers
said, or the build stops. No time, host, user, absolute path, engine or worker count stands in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from datamix import __version__
from datamix.core.arrays import open_batch
from datamix.core.content import files_digest
from datamix.core.contracts import UNITS, Receipt, Task
from datamix.core.errors import DataError
from datamix.pipeline import write_shards
from datamix.pipeline.ledger import Account
from datamix.pipeline.prepare_sources import PreparedSource
from datamix.pipeline.state import Arranged, Decided, ResolvedBuild
from datamix.recipe import Recipe

# Versions that can change a byte of a set.
PACKAGES = ("pyarrow", "tokenizers", "transformers", "jinja2", "numpy", "ftfy", "matplotlib")
_OF_CONTAINER = {
    "html": "resiliparse",
    "epub": "resiliparse",
    "pdf": "pypdfium2",
    "docx": "mammoth",
    "warc": "warcio",
}
_OF_STEP = {"language": "py3langid"}
_LEDGER = ("cleaned", "removed", "dropped", "validation", "used", "unused")
_AMOUNTS = ("rows", *UNITS)


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
    outputs, accounts = written.outputs, written.accounts
    emitted = _planned(decided, arranged)
    if recipe.write and _recounted(written.shards) != emitted:
        raise DataError(
            "The rows that were written are not the rows that were planned: a defect of datamix; please report it."
        )
    manifest: dict[str, Any] = {
        "datamix_version": __version__,
        "name": recipe.name,
        "kind": recipe.kind,
        "seed": recipe.seed,
        "recipe": recipe.published(),
        "recipe_sha256": recipe.sha256(),
        "key": written.key,
        "sample": written.sample,
        "virtual": not recipe.write,
        "packages": {name: version(name) for name in _packages(recipe, decided)},
        "tokenizer": {
            "name": recipe.tokenizer,
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "chat_template_sha256": tokenizer.chat_template_sha256,
        },
        "inputs": _inputs(decided.sources),
        "sources": {
            ready.name: _source(number, recipe, decided, accounts[number], arranged, emitted)
            for number, ready in enumerate(decided.sources)
        },
        "mixture": _mixture(recipe, arranged, emitted),
        "packing": _packing(recipe, decided, emitted),
        "outputs": sorted(outputs, key=lambda o: str(o["path"])),
        "commands": written.commands,
        "content_sha256": files_digest(_contents(written.shards)) if recipe.write else None,
    }
    return manifest


def _packages(recipe: Recipe, decided: Decided) -> list[str]:
    """The packages whose version can change a byte of this set."""
    containers = {file.container for ready in decided.sources for file in ready.found}
    steps = {step.name for step in recipe.clean}
    extra = {_OF_CONTAINER[c] for c in containers & _OF_CONTAINER.keys()} | {
        _OF_STEP[s] for s in steps & _OF_STEP.keys()
    }
    return [*PACKAGES, *sorted(extra)]


Amounts = dict[tuple[str, str], Counter[str]]  # (stage, source) -> rows, records, tokens, loss_tokens


def _recounted(written: Sequence[tuple[Task, Receipt]]) -> Amounts:
    """Amounts of train/ as the tasks counted them in the Parquet rows that they wrote."""
    total: Amounts = {}
    for task, receipt in written:
        if write_shards.is_training(task.spec):
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
                amounts = {unit: int(bins.column(unit).to_numpy()[rows].sum()) for unit in _AMOUNTS[1:]}
                total[stage.name, decided.sources[number].name] = Counter(rows=len(rows), **amounts)
        start = stop
    return total


def _inputs(sources: Sequence[PreparedSource]) -> list[dict[str, Any]]:
    return [
        {
            "source": ready.name,
            "path": file.label,
            "bytes": file.num_bytes,
            "sha256": file.sha256,
            "records": records,
            "encoding": file.encoding if file.container not in ("parquet", "arrow", "arrow_stream") else None,
            "container": file.container,
            "compression": file.compression,
            "format": file.format,
        }
        for ready in sources
        for file, records in zip(ready.found, ready.file_records, strict=True)
    ]


def _source(
    number: int,
    recipe: Recipe,
    decided: Decided,
    settled: Account,
    arranged: Arranged,
    emitted: Amounts,
) -> dict[str, Any]:
    ready = decided.sources[number]
    packed = decided.packed[number].counts["train"]
    rejected = ready.count("rejected_by")
    records = {"read": sum(ready.file_records), "rejected": sum(rejected.values())}
    records |= {fate: settled.counts.get(fate, 0) for fate in _LEDGER}
    own = sum((c for (_, source), c in emitted.items() if source == ready.name), Counter())
    available = {
        "rows": packed["rows"],
        "records": packed["pieces"],
        "tokens": packed["tokens"],
        "loss_tokens": packed["loss_tokens"],
    }
    unit = recipe.unit
    return {
        "records": records,
        "rejected_by": dict(sorted(rejected.items())),
        "cleaned_by": settled.reasons.get("cleaned", {}),
        "mended_by": dict(sorted(ready.count("mended_by").items())),
        "removed_by": settled.reasons.get("removed", {}),
        "dropped_by": settled.reasons.get("dropped", {}),
        "unused_by": settled.reasons.get("unused", {}),
        "noticed": _noticed(ready),
        "truncated": packed["truncated"],
        "available": available,
        "emitted": {name: own[name] for name in _AMOUNTS},
        "epochs": own[unit] / available[unit] if available[unit] else 0.0,
        "share": {
            "asked": arranged.quota.shares[number] if number < len(arranged.quota.shares) else 0.0,
            **{unit: _share(own, emitted, unit) for unit in _AMOUNTS[1:]},
            **_effective(recipe, own, emitted),
        },
    }


def _noticed(ready: PreparedSource) -> dict[str, int]:
    """What encoding met, by its name; of the chat template's refusals also what it said. Counted before deduplication."""
    total: Counter[str] = Counter()
    for receipt in ready.encoded:
        total.update(receipt.counts["found"])
    return dict(sorted(total.items()))


def _effective(recipe: Recipe, own: Counter[str], emitted: Amounts) -> dict[str, float]:
    """The share of the loss under the mean that the recipe says is taken in the end."""
    if recipe.mix.averaged_over is None:
        return {}
    unit = "rows" if recipe.mix.averaged_over == "example" else "loss_tokens"
    return {"effective": _share(own, emitted, unit)}


def _share(own: Counter[str], emitted: Amounts, unit: str) -> float:
    total = sum(c[unit] for c in emitted.values())
    return own[unit] / total if total else 0.0


def _mixture(
    recipe: Recipe, arranged: Arranged, emitted: dict[tuple[str, str], Counter[str]]
) -> dict[str, Any]:
    names = list(recipe.sources)
    total = sum(s.length for s in arranged.quota.stages)
    stages: list[dict[str, Any]] = []
    for stage in arranged.quota.stages:
        own = sum((c for (name, _), c in emitted.items() if name == stage.name), Counter())
        ends = stage.ramp_to or stage.weights
        said: dict[str, Any] = {
            "name": stage.name,
            "share": stage.length / total,
            "size": stage.length,
            "weights": dict(zip(names, ends, strict=True)),
        }
        if stage.ramp_to is not None:
            said |= {"ramp": "linear", "ramp_from": dict(zip(names, stage.weights, strict=True))}
        stages.append({**said, **{name: own[name] for name in _AMOUNTS}})
    counts = arranged.order.counts
    return {
        "unit": recipe.mix.unit,
        "bound": counts["bound"],
        "max_prefix_deviation": counts["max_prefix_deviation"],
        "binding": arranged.quota.binding[0] if arranged.quota.binding else None,
        "stages": stages,
    }


def _packing(
    recipe: Recipe, decided: Decided, emitted: dict[tuple[str, str], Counter[str]]
) -> dict[str, Any]:
    total = sum(emitted.values(), Counter())
    length = recipe.encode.max_length
    return {
        "strategy": recipe.encode.pack,
        "max_length": length,
        "rows": total["rows"],
        "fill": total["tokens"] / (total["rows"] * length)
        if length and recipe.kind in ("pretrain", "sft")
        else None,
        "cut_records": sum(r.counts["train"]["cut_records"] for r in decided.packed),
    }


def _contents(written: Sequence[tuple[Task, Receipt]]) -> Iterator[str]:
    """The digest of each file of train/, in order, as the tasks took it from the rows that they wrote."""
    return (r.counts["content"] for task, r in written if write_shards.is_training(task.spec))
