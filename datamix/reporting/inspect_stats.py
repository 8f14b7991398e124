"""What a set is made of, counted in one pass: lengths, shares, and how much of the vocabulary it uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich import box
from rich.table import Table
from rich.text import Text

from datamix.audit.row_laws import amounts, lists, pieces
from datamix.core.records import Kind
from datamix.reporting.decode import HEAD, SOFT, Decoder, render, split_shards
from datamix.tokenize import fertility, read_alphabet

_QUANTILES = (0.5, 0.95, 1.0)
_COMMON = 12  # most frequent tokens listed
_SOURCE_HEADS = ("rows", "records", "tokens", "share", "loss tokens", "share", "trained", "median", "95 %", "longest")  # fmt: skip
_FIT_HEADS = ("characters", "tokens a character", "unknown", "single bytes")


class _Counts:
    """What each source holds, over all rows."""

    def __init__(self, sources: list[str], vocab_size: int) -> None:
        self.totals = {name: np.zeros(3, np.int64) for name in sources}  # rows, tokens, loss tokens
        self.lengths = {name: [np.zeros(0, np.int32)] for name in sources}  # tokens of each record
        self.uses = {name: np.zeros(vocab_size, np.int64) for name in sources}  # of each token id

    def add(self, batch: pa.RecordBatch, kind: Kind) -> None:
        """Count the rows of a batch."""
        sources = np.array(batch.column("source").to_pylist(), object)
        counted, parts = amounts(batch, kind), pieces(batch)
        ids = [n for n in batch.schema.names if n.endswith("_ids") and n != "position_ids"]
        for name in set(sources):
            mask = sources == name
            self.totals[name] += [mask.sum(), counted.tokens[mask].sum(), counted.loss_tokens[mask].sum()]
            self.lengths[name].append(parts.length[mask[parts.rows()]].astype(np.int32))
            for column in batch.filter(pa.array(mask)).select(ids).columns:
                self.uses[name] += np.bincount(lists(column).values, minlength=len(self.uses[name]))


def show_stats(out: Path, manifest: dict[str, Any]) -> str:
    """Tables of a set's sources and of its vocabulary; memory grows by 4 bytes a record."""
    counts = _Counts(list(manifest["sources"]), manifest["tokenizer"]["vocab_size"])
    for shard in split_shards(out, manifest):
        for batch in pq.ParquetFile(shard).iter_batches(batch_size=1024):
            counts.add(batch, manifest["kind"])
    whole = np.maximum(np.sum(list(counts.totals.values()), axis=0), 1)
    rows, fit, alphabet = [], [], read_alphabet(out / "tokenizer")
    for name, (num_rows, tokens, loss) in counts.totals.items():
        lengths = np.concatenate(counts.lengths[name])
        shares = (
            f"{tokens / whole[1]:.2%}",
            f"{loss:,}",
            f"{loss / whole[2]:.2%}",
            f"{loss / max(1, int(tokens)):.1%}",
        )
        quantiles = [f"{q:,.0f}" for q in np.quantile(lengths, _QUANTILES)] if len(lengths) else [""] * 3
        rows.append([name, f"{num_rows:,}", f"{len(lengths):,}", f"{tokens:,}", *shares, *quantiles])
        text = fertility(counts.uses[name], alphabet)
        unknown = (f"{text.unknown_share:.2%}", f"{text.byte_share:.2%}")
        fit.append([name, f"{text.num_chars:,}", f"{text.tokens_per_char:.3f}", *unknown])
    uses, decoder = np.sum(list(counts.uses.values()), axis=0), Decoder(out)
    num_used, top = int((uses > 0).sum()), np.argsort(-uses, kind="stable")[:_COMMON]
    common = "  ".join(
        f"{decoder.text([int(i)])!r} {uses[i] / max(1, int(uses.sum())):.2%}" for i in top if uses[i]
    )
    return render(
        Text(f"{manifest['name']}: {manifest['kind']}", HEAD),
        _table(_SOURCE_HEADS, rows),
        _table(_FIT_HEADS, fit),  # what the template writes counts too, control tokens do not
        Text(f"Vocabulary: {num_used:,} of {len(uses):,} ids are used ({num_used / len(uses):.1%})."),
        Text(f"Most frequent: {common}", SOFT),
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("source", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
