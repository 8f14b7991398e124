"""What a set is made of, counted in one pass: lengths, shares, and how much of the vocabulary it uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text

from ..transcript import Decoder, train_shards
from ..audit.rows import amounts, lists, pieces
from .terminal import HEAD, SOFT, render

_QUANTILES = (0.5, 0.95, 1.0)
_COMMON = 12  # most frequent tokens named


def show_stats(out: Path, manifest: dict[str, Any]) -> str:
    """Tables of a set's sources and of its vocabulary; memory grows by 4 bytes a record."""
    sources = list(manifest["sources"])
    uses = np.zeros(manifest["tokenizer"]["vocab_size"], np.int64)
    lengths: dict[str, list[NDArray[np.int32]]] = {name: [] for name in sources}
    held = {name: np.zeros(3, np.int64) for name in sources}  # rows, tokens, loss tokens
    for shard in train_shards(out, manifest):
        for batch in pq.ParquetFile(shard).iter_batches(batch_size=1024):
            for name in (n for n in batch.schema.names if n.endswith("_ids") and n != "position_ids"):
                uses += np.bincount(lists(batch.column(name)).values, minlength=len(uses))
            row_sources = np.array(batch.column("source").to_pylist(), object)
            counted, parts = amounts(batch, manifest["kind"]), pieces(batch)
            for name in set(row_sources):
                here = row_sources == name
                held[name] += [here.sum(), counted.tokens[here].sum(), counted.loss_tokens[here].sum()]
                lengths[name].append(parts.length[here[parts.rows()]].astype(np.int32))
    return render(
        Text(f"{manifest['name']}: {manifest['kind']}", HEAD),
        _source_table({n: np.concatenate([*lengths[n], np.zeros(0, np.int32)]) for n in sources}, held),
        *_vocabulary(uses, Decoder(out)),
    )


def _source_table(lengths: dict[str, NDArray[np.int32]], held: dict[str, NDArray[np.int64]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("source", no_wrap=True)
    heads = (
        "rows",
        "records",
        "tokens",
        "share",
        "loss tokens",
        "share",
        "trained",
        "median",
        "95 %",
        "longest",
    )
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    total = np.maximum(sum(held.values(), np.zeros(3, np.int64)), 1)
    for name, (rows, tokens, loss) in held.items():
        steps = (
            [f"{q:,.0f}" for q in np.quantile(lengths[name], _QUANTILES)]
            if len(lengths[name])
            else ["", "", ""]
        )
        counts = [
            f"{rows:,}",
            f"{len(lengths[name]):,}",
            f"{tokens:,}",
            f"{tokens / total[1]:.2%}",
            f"{loss:,}",
        ]
        table.add_row(name, *counts, f"{loss / total[2]:.2%}", f"{loss / max(1, tokens):.1%}", *steps)
    return table


def _vocabulary(uses: NDArray[np.int64], decoder: Decoder) -> list[Text]:
    used, total = int((uses > 0).sum()), max(1, int(uses.sum()))
    top = np.argsort(-uses, kind="stable")[:_COMMON]
    common = "  ".join(f"{decoder.text([int(i)])!r} {uses[i] / total:.2%}" for i in top if uses[i])
    return [
        Text(f"Vocabulary: {used:,} of {len(uses):,} ids are used ({used / len(uses):.1%})."),
        Text(f"Most frequent: {common}", SOFT),
    ]
