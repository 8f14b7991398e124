"""How many tokens a source holds, from a sample of its prepared records.

Records are sorted by bytes and cut into strata of equal bytes; of each a few are encoded and made to fit, spread over
the files. Tokens follow bytes closely inside a stratum, so a ratio a stratum, times its bytes, is the estimate; a stratum of few
records, such as one huge one, is encoded whole. The margin is two and a half standard errors, which holds 19 times of 20 (Cochran,
Sampling Techniques, 1977, 6.13). Costs at most a thousand encoded records a source, and one pass over the sizes of the others.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datamix.core.arrays import open_batch
from datamix.core.contracts import Task
from datamix.core.hashing import digest, mix64, salt
from datamix.pipeline.prepare import read_batches
from datamix.pipeline.select import POOL, VALIDATION
from datamix.pipeline.shards import PreparedPart, RecordStore, SourceShards, take
from datamix.tokenize import EncodeSpec, load
from datamix.tokenize import fit as truncate_records

_VERSION = 1
_LARGE_BYTES = 16 << 20
_NUM_STRATA, _PER_STRATUM = 24, 40
_DEVIATIONS = 2.5  # standard errors of the margin: 95 %, of lengths with long tails too
_LONG_CHARS = 1 << 20  # of a longer text only parts are encoded
_PARTS, _PART_CHARS = 8, 1 << 15
_PARTS_ERROR = 0.005  # of the tokens of a text estimated from parts of it


@dataclass(frozen=True)
class EstimateSpec:
    """Prepared records of one source, and what encoding would do with them."""

    source: SourceShards
    fates: Path | None  # None: every record is counted
    encode: EncodeSpec
    max_length: int | None
    overlong: str
    strategy: str
    seed: int


def task(spec: EstimateSpec, selected: str, num_bytes: int, home: Path) -> Task:
    """One task a source; ``selected`` is the key of the fates, ``num_bytes`` the size of its prepared records."""
    asked = [spec.encode.identity(), spec.max_length, spec.overlong, spec.strategy, spec.seed]
    key = digest("estimate", _VERSION, spec.source.name, spec.source.key, selected, *asked)
    return Task(f"sample {spec.source.name}", key, estimate, spec, home, min(num_bytes, 1 << 22))


def estimate(spec: EstimateSpec, folder: Path) -> dict[str, Any]:
    """Totals of the records in the pool, with margins; what is held out; the speed of encoding."""
    sizes = record_sizes(spec.source.parts)
    fate = (
        np.full(len(sizes), POOL) if spec.fates is None else open_batch(spec.fates).column("fate").to_numpy()
    )
    pool, held = np.flatnonzero(fate == POOL), np.flatnonzero(fate == VALIDATION)
    totals: dict[str, float] = dict.fromkeys(("usable", "tokens", "loss"), 0.0)
    variance = dict(totals)
    longest, smallest, seconds, encoded_bytes, cached = 0, 0, 0.0, 0.0, 0.0
    if len(pool):
        stratum = _strata(sizes[pool])
        at = _sampled(stratum, salt(spec.seed, "estimate", spec.source.name))
        if sizes.sum() > _LARGE_BYTES:
            load(spec.encode).make_ready()  # the engine that a build of it will use, to measure its speed
        start = time.perf_counter()
        lengths, loss, usable, full = _encode(spec, pool[at])
        seconds = time.perf_counter() - start
        encoded_bytes = float(sizes[pool[at]].sum())
        longest, smallest = int(lengths.max()), int(lengths[usable].min(initial=max(1, longest)))
        for number in np.unique(stratum):
            whole, some = np.flatnonzero(stratum == number), stratum[at] == number
            values = {"usable": usable[some] * 1.0, "tokens": lengths[some] * 1.0, "loss": loss[some] * 1.0}
            density = full[some].sum() / sizes[pool[at[some]]].sum()
            cached += float(density * sizes[pool[whole]].sum())
            for name, sample in values.items():
                by = np.ones(some.sum()) if name == "usable" else sizes[pool[at[some]]] * 1.0
                total = len(whole) if name == "usable" else float(sizes[pool[whole]].sum())
                ratio = sample.sum() / by.sum()
                totals[name] += ratio * total
                if len(whole) > len(sample):
                    spread = float(((sample - ratio * by) ** 2).sum()) / max(1, len(sample) - 1)
                    if (
                        not usable.all()
                    ):  # a few records seen in full do not prove that none of the others is dropped
                        part = (usable[some].sum() + 1) / (len(sample) + 2)
                        largest = float(sample.max(initial=1.0 if name == "usable" else full[some].mean()))
                        spread = max(spread, part * (1 - part) * largest**2)
                    free = 1 - len(sample) / len(whole)
                    variance[name] += len(whole) ** 2 * free * spread / len(sample)
        long = sizes[pool[at]] > _LONG_CHARS if spec.source.kind == "text" else np.zeros(len(at), bool)
        unseen = (
            3 * (len(pool) - len(at)) / len(at)
        )  # a rare reason to drop a record may not be in the sample: rule of three
        variance["usable"] = max(variance["usable"], (unseen / _DEVIATIONS) ** 2)
        variance["tokens"] += float(((_PARTS_ERROR * lengths[long]) ** 2).sum())
        variance["loss"] += float(((_PARTS_ERROR * loss[long]) ** 2).sum())
    return {
        "records": len(pool),
        **totals,
        "margins": {name: _DEVIATIONS * value**0.5 for name, value in variance.items()},
        "cached_tokens": cached * float(sizes.sum() / max(1, sizes[pool].sum())),
        "longest": longest,
        "smallest": smallest,
        "held_records": len(held),
        "held_share": float(sizes[held].sum() / max(1, sizes[held].sum() + sizes[pool].sum())),
        "bytes_per_second": encoded_bytes / max(seconds, 1e-3),
    }


def record_sizes(parts: Sequence[PreparedPart]) -> NDArray[np.int64]:
    """Bytes of text of each prepared record, at least 1. ``[num_records]``."""
    sizes = [np.empty(0, np.int64)]
    for part in parts:
        for batch in read_batches(str(part.records)):
            total = np.ones(batch.num_rows, np.int64)
            for name in ("text", "tools"):
                if name in batch.schema.names:
                    total += _byte_lengths(batch.column(name))
            for name in ("messages", "chosen", "rejected"):
                if name in batch.schema.names:
                    turns = batch.column(name)
                    flat = sum(
                        _byte_lengths(turns.values.field(f)) for f in ("content", "reasoning", "tool_calls")
                    )
                    ends = np.concatenate([[0], np.cumsum(flat)])[turns.offsets.to_numpy()]
                    total += np.diff(ends)
            sizes.append(total)
    return np.concatenate(sizes)


def _byte_lengths(column: pa.Array) -> NDArray[np.int64]:
    lengths = pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
    result: NDArray[np.int64] = lengths.astype(np.int64)
    return result


def _strata(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The stratum of each record: in the order of their sizes, cut into equal numbers of bytes."""
    order = np.argsort(sizes, kind="stable")
    before = np.cumsum(sizes[order]) - sizes[order]
    stratum = np.empty(len(sizes), np.int64)
    stratum[order] = before * _NUM_STRATA // max(1, int(sizes.sum()))
    return stratum


def _sampled(stratum: NDArray[np.int64], seed: np.uint64) -> NDArray[np.int64]:
    """Places of the sample: of each stratum a few records, spread over the files."""
    places: list[NDArray[np.int64]] = []
    for number in np.unique(stratum):
        whole = np.flatnonzero(stratum == number)
        places.append(whole[spread(len(whole), _PER_STRATUM, seed ^ np.uint64(number))])
    return np.sort(np.concatenate(places))


def spread(num: int, count: int, seed: np.uint64) -> NDArray[np.int64]:
    """About evenly spaced places among ``num``: a seeded one of each of ``count`` equal parts."""
    count = min(num, count)
    inside = (mix64(np.arange(count, dtype=np.uint64) ^ seed) >> np.uint64(11)) / float(1 << 53)
    return np.minimum(((np.arange(count) + inside) * num / count).astype(np.int64), num - 1)


def _encode(
    spec: EstimateSpec, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Tokens, trained tokens and whether it can be used, of each of the records ``rows``, truncated; tokens at full length."""
    encoder, kind = load(spec.encode), spec.source.kind
    store = RecordStore(spec.source.parts)
    names = store.batches(rows[:1])[0][0].schema.names
    batch = take(store, rows, names).combine_chunks().to_batches()[0]
    scale = np.ones(len(rows))
    if kind == "text":
        texts = [_excerpt(text) for text in batch.column("text").to_pylist()]
        scale = np.array([whole / max(1, len(text)) for text, whole in texts])
        place = batch.schema.get_field_index("text")
        column = pa.array([text for text, _ in texts], pa.string())
        batch = batch.set_column(place, batch.schema.field(place), column)
    tokens, _ = encoder.encode(batch, kind)
    lengths, loss = (tokens.column(n).to_numpy().astype(np.int64) for n in ("length", "loss"))
    usable = tokens.column("reason").is_null().to_numpy(zero_copy_only=False)
    lengths = np.round(lengths * scale).astype(np.int64)
    full = lengths.copy()
    if spec.encode.kind == "pretrain":
        limit = spec.max_length or int(lengths.max(initial=1))
        if spec.overlong != "split":
            usable = usable & (lengths <= limit)
        loss = lengths - (-(-lengths // limit) if spec.strategy == "best_fit" else 0)
    elif spec.max_length is not None:
        long = np.flatnonzero(usable & (lengths > spec.max_length))
        if len(long):
            cut = truncate_records(
                encoder, batch.take(pa.array(long)), kind, spec.max_length, spec.overlong
            ).tokens
            lengths[long], loss[long] = (cut.column(n).to_numpy() for n in ("length", "loss"))
            usable[long] = cut.column("reason").is_null().to_numpy(zero_copy_only=False)
    return np.where(usable, lengths, 0), np.where(usable, loss, 0), usable, full


def _excerpt(text: str) -> tuple[str, int]:
    """A text, or evenly spaced parts of a very long one; and its length in characters."""
    if len(text) <= _LONG_CHARS:
        return text, len(text)
    starts = np.linspace(0, len(text) - _PART_CHARS, _PARTS).astype(int)
    return "".join(text[a : a + _PART_CHARS] for a in starts), len(text)
