"""What a set is made of, counted in one pass: lengths, shares, and how much of the vocabulary it uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text

from datamix.audit.row_laws import amounts, lists, pieces
from datamix.reporting.decode import Decoder, train_shards
from datamix.reporting.terminal import HEAD, SOFT, render
from datamix.tokenize import fertility, read_alphabet
from datamix.tokenize.stats import VocabularyAlphabet

_QUANTILES = (0.5, 0.95, 1.0)
_COMMON = 12  # most frequent tokens named


def show_stats(out: Path, manifest: dict[str, Any]) -> str:
    """Tables of a set's sources and of its vocabulary; memory grows by 4 bytes a record."""
    sources = list(manifest["sources"])
    uses = {name: np.zeros(manifest["tokenizer"]["vocab_size"], np.int64) for name in sources}
    lengths: dict[str, list[NDArray[np.int32]]] = {name: [] for name in sources}
    held = {name: np.zeros(3, np.int64) for name in sources}  # rows, tokens, loss tokens
    for shard in train_shards(out, manifest):
        for batch in pq.ParquetFile(shard).iter_batches(batch_size=1024):
            row_sources = np.array(batch.column("source").to_pylist(), object)
            counted, parts = amounts(batch, manifest["kind"]), pieces(batch)
            for name in set(row_sources):
                here = row_sources == name
                held[name] += [here.sum(), counted.tokens[here].sum(), counted.loss_tokens[here].sum()]
                lengths[name].append(parts.length[here[parts.rows()]].astype(np.int32))
                _count(uses[name], batch.filter(pa.array(here)))
    return render(
        Text(f"{manifest['name']}: {manifest['kind']}", HEAD),
        _source_table({n: np.concatenate([*lengths[n], np.zeros(0, np.int32)]) for n in sources}, held),
        _fit_table(uses, read_alphabet(out / "tokenizer")),
        *_vocabulary(np.sum(list(uses.values()), axis=0), Decoder(out)),
    )


def _count(uses: NDArray[np.int64], batch: pa.RecordBatch) -> None:
    for name in (n for n in batch.schema.names if n.endswith("_ids") and n != "position_ids"):
        uses += np.bincount(lists(batch.column(name)).values, minlength=len(uses))


def _fit_table(uses: dict[str, NDArray[np.int64]], known: VocabularyAlphabet) -> Table:
    """How well the tokenizer suits each source: what the template writes counts too, control tokens do not."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("source", no_wrap=True)
    for head in ("characters", "tokens a character", "unknown", "single bytes"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, counts in uses.items():
        found = fertility(counts, known)
        table.add_row(name, f"{found.num_chars:,}", f"{found.tokens_per_char:.3f}", f"{found.unknown_share:.2%}",
                      f"{found.byte_share:.2%}")  # fmt: skip
    return table


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
