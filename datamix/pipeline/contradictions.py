"""Preference pairs that contradict each other: A over B and B over A, or a circle of several.

The pairs of one prompt are a graph from the better answer to the worse; a pair contradicts others where the way from
its worse answer leads back to its better one. Nearly all pairs are ruled out with integers (an answer that is
never worse, or never better, is in no circle); only what is left is searched. About 80 bytes a pair while it runs.
Answers are distinguished by 64-bit hashes of content: among 10 million pairs two clash with a chance of 1 in 50,000.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.hashing import content_keys, fixed_binary, key_ranks, mix64, salt
from datamix.core.records import identity_texts
from datamix.pipeline.prepare import read_batches
from datamix.pipeline.shards import PreparedPart

_PROMPT, _ANSWER = salt(0, "contradictions", "prompt"), salt(0, "contradictions", "answer")


@dataclass(frozen=True)
class Pairs:
    """Pairs as edges between answers. All arrays are ``[num_pairs]``."""

    row: NDArray[np.int64]  # ordinal of the record inside its source
    better: NDArray[np.uint64]  # hash of the prompt and the better answer
    worse: NDArray[np.uint64]


def pairs(parts: Sequence[PreparedPart]) -> Pairs:
    """The pairs among the prepared records of one source; records with a single answer are none."""
    rows, better, worse = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    first = 0
    for part in parts:
        for batch in read_batches(str(part.records)):
            paired = np.flatnonzero(batch.column("rejected").is_valid().to_numpy(zero_copy_only=False))
            prompt = _hashes(batch, "messages", _PROMPT)
            rows.append(first + paired)
            better.append(mix64(prompt ^ _hashes(batch, "chosen", _ANSWER))[paired])
            worse.append(mix64(prompt ^ _hashes(batch, "rejected", _ANSWER))[paired])
            first += batch.num_rows
    return Pairs(np.concatenate(rows), np.concatenate(better), np.concatenate(worse))


def _hashes(batch: pa.RecordBatch, column: str, seed: np.uint64) -> NDArray[np.uint64]:
    turns = pa.record_batch({"messages": batch.column(column)})
    return key_ranks(fixed_binary(content_keys(identity_texts(turns, "sft"))), seed)


def contradictory(better: NDArray[np.uint64], worse: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which pairs ``[num_pairs]`` lie on a circle: ``A>B, B>C, C>A, C>D`` -> yes, yes, yes, no."""
    nodes, edges = np.unique(np.concatenate([better, worse]), return_inverse=True)
    start, end = edges[: len(better)], edges[len(better) :]
    left = np.flatnonzero(start != end)
    while True:
        is_better, is_worse = np.zeros((2, len(nodes)), bool)
        is_better[start[left]] = True
        is_worse[end[left]] = True
        next_left = left[is_worse[start[left]] & is_better[end[left]]]
        if len(next_left) == len(left):
            break
        left = next_left
    is_contradictory = np.zeros(len(better), bool)
    is_contradictory[list(_on_circles(left.tolist(), start[left].tolist(), end[left].tolist()))] = True
    return is_contradictory


def _on_circles(pairs: list[int], start: list[int], end: list[int]) -> Iterator[int]:
    """Those of a few pairs whose worse answer leads back to their better one."""
    after: dict[int, list[int]] = {}
    for a, b in zip(start, end, strict=True):
        after.setdefault(a, []).append(b)
    reached: dict[int, set[int]] = {}
    for pair, a, b in zip(pairs, start, end, strict=True):
        if b not in reached:
            seen, ahead = {b}, [b]
            while ahead:
                fresh = set(after.get(ahead.pop(), ())) - seen
                seen |= fresh
                ahead += fresh
            reached[b] = seen
        if a in reached[b]:
            yield pair
