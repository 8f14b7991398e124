"""Decontamination: training records that hold too much of an evaluation item.

The share of an item is the part of its words that the record holds in runs of at least ``ngram`` words (a
character of an unspaced script is a word). A record is reported when the share reaches ``min_overlap``.
N-grams that more than 32 items have are the template of a benchmark ("Answer the following question ..."):
they are left out of the share, above and below the line. An item shorter than ``ngram`` must occur whole; one
of fewer than five words must be the whole text, or every text that mentions it would be removed.

Cost: one look-up an n-gram, about 15 ns a training word on one core; memory is the table of the items (20
bytes a word).

Source: Lambert et al. 2024, Tulu 3, section 3.2 (8-grams, half the tokens); Brown et al. 2020 (13-grams).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.kernels import Kernel
from datamix.core.records import texts
from datamix.dedup.decide import Signed
from datamix.dedup.kernels import SEPARATOR, SINGLE
from datamix.dedup.signatures import ShingleScratch, alphabet, new_shingle_scratch
from datamix.dedup.spec import ContaminationSpec
from datamix.dedup.text_columns import flat_texts, map_file, places

_TEMPLATE_ITEMS = 32
_WHOLE_BELOW = 5  # words

_place = Kernel("dedup", "grams", "place")
_text_grams = Kernel("dedup", "grams", "text_grams")
_hits = Kernel("dedup", "grams", "hits")


@dataclass(frozen=True)
class Matches:
    """Training records that hold an evaluation item; of several, the one with the largest share."""

    records: NDArray[np.int64]  # [num_matches] ordinal of the training record, ascending
    items: NDArray[np.int64]  # [num_matches] ordinal of the evaluation item, over all arrays
    shares: NDArray[np.float32]  # [num_matches]
    spans: pa.Array  # [num_matches] the longest matched stretch of the training record


class ItemGrams(NamedTuple):
    """The n-grams of all items that are matched by the same n, in an open-addressed table.

    Key k occurs at ``firsts[k]..firsts[k + 1]`` of ``items`` and ``positions``.
    """

    ngram: int
    slots: NDArray[np.int32]  # [power of two, at most a quarter full] number of the key, -1
    keys: NDArray[np.uint64]  # [num_keys]
    firsts: NDArray[np.int64]  # [num_keys + 1]
    items: NDArray[np.int64]  # [num_entries]
    positions: NDArray[np.int64]  # [num_entries] first word of the n-gram in the item


@dataclass(frozen=True)
class EvalIndex:
    """The n-grams of evaluation items, ready to be looked up."""

    groups: tuple[ItemGrams, ...]
    num_words: NDArray[np.int64]  # [num_items] words of the item that its n-grams cover
    min_overlap: float


def overlap(
    train: Sequence[Signed], evals: Sequence[pa.Array], spec: ContaminationSpec, *, threads: int | None = None
) -> list[Matches]:
    """Match the records of each training source against evaluation items (texts of their ``spec.fields``)."""
    index = index_items(evals, spec)
    results = []
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        for source in train:
            start, starts, parts = 0, [0], [_no_matches()]
            for path in source.batches:  # one file at a time stays mapped
                batches = map_file(path).batches
                parts += pool.map(lambda b, k=source.kind: find(index, texts(b, k, spec.fields)), batches)
                for batch in batches:
                    starts.append(start)
                    start += len(batch)
            records = np.concatenate([p.records + first for p, first in zip(parts, starts, strict=True)])
            counts = np.ones(len(records), bool) if source.alive is None else source.alive[records]
            items, shares = (np.concatenate([getattr(p, n) for p in parts]) for n in ("items", "shares"))
            spans = pa.concat_arrays([p.spans for p in parts]).filter(pa.array(counts))
            results.append(Matches(records[counts], items[counts], shares[counts], spans))
    return results


def index_items(evals: Sequence[pa.Array], spec: ContaminationSpec) -> EvalIndex:
    """The index of the items in ``evals``, which are numbered through."""
    scratch = new_shingle_scratch(spec.ngram)
    item = 0
    grams: dict[int, list[tuple[int, NDArray[np.uint64]]]] = {}
    for array in evals:
        for chunk in flat_texts(array):
            for place in zip(*(column.tolist() for column in places(chunk)), strict=True):
                ngram = min(spec.ngram, len(_grams_of(place, 1, scratch)))
                if ngram:
                    grams.setdefault(ngram, []).append((item, _grams_of(place, ngram, scratch)))
                item += 1
    num_words = np.zeros(item, np.int64)
    groups = []
    for ngram in sorted(grams):
        keys = np.concatenate([k for _, k in grams[ngram]])
        items = np.concatenate([np.full(len(k), item) for item, k in grams[ngram]])
        positions = np.concatenate([np.arange(len(k)) for _, k in grams[ngram]])
        if ngram >= _WHOLE_BELOW:
            order = np.lexsort((items, keys))
            new_key = np.append(True, np.diff(keys[order]) > 0)
            new_pair = new_key | np.append(True, np.diff(items[order]) > 0)
            sharers = np.add.reduceat(new_pair, np.flatnonzero(new_key), dtype=np.int64)
            specific = ~np.isin(keys, keys[order][new_key][sharers > _TEMPLATE_ITEMS])
            keys, items, positions = keys[specific], items[specific], positions[specific]
        np.add.at(num_words, items, _new_words(items, positions, np.full(len(items), ngram)))
        order = np.argsort(keys, kind="stable")
        distinct, firsts = np.unique(keys[order], return_index=True)
        slots = np.full(1 << max(8, int(4 * len(distinct)).bit_length()), -1, np.int32)
        _place(distinct, slots)
        firsts = np.append(firsts, len(keys)).astype(np.int64)
        groups.append(ItemGrams(ngram, slots, distinct, firsts, items[order], positions[order]))
    return EvalIndex(tuple(groups), num_words, spec.min_overlap)


def find(index: EvalIndex, array: pa.Array) -> Matches:
    """The texts of an array that hold an item; ``records`` are rows of the array."""
    columns = [_group_hits(group, array) for group in index.groups]
    text, item, position, place, ngram = np.concatenate([np.empty((5, 0), np.int64), *columns], axis=1)
    if len(text) == 0:
        return _no_matches()
    order = np.lexsort((place, position, item, text))
    text, item, position, place, ngram = (column[order] for column in (text, item, position, place, ngram))
    pair = np.cumsum(np.append(0, (np.diff(text) != 0) | (np.diff(item) != 0)))
    first = np.flatnonzero(np.append(True, np.diff(pair) > 0))
    covered = np.zeros(len(first), np.int64)
    np.add.at(covered, pair, _new_words(pair, position, ngram))
    text_of, item_of = text[first], item[first]
    shares = covered / index.num_words[item_of]
    # of each text the pair with the largest share, of equals the first item
    ranked = np.lexsort((item_of, -shares, text_of))
    ranked = ranked[shares[ranked] >= index.min_overlap]
    best = ranked[np.unique(text_of[ranked], return_index=True)[1]]
    spans = [
        _span(array[int(text_of[i])].as_py(), place[pair == i], int(ngram[first[i]])) for i in best.tolist()
    ]
    return Matches(
        text_of[best], item_of[best], shares[best].astype(np.float32), pa.array(spans, pa.string())
    )


def _new_words(
    groups: NDArray[np.int64], positions: NDArray[np.int64], ngrams: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Words each n-gram covers that the next one of its group does not; rows sorted by group, then position.

    One n-gram that occurs at several places of a text counts once.
    """
    new = ngrams.copy()
    same = groups[1:] == groups[:-1]
    new[:-1][same] = np.minimum(ngrams[:-1], np.diff(positions))[same]
    return new


def _group_hits(group: ItemGrams, array: pa.Array) -> NDArray[np.int64]:
    """Columns (text, item, position in the item, place in the text, n) ``[5, num_hits]``."""
    scratch, where = new_shingle_scratch(group.ngram), places(array)
    rows = np.empty((256, 3), np.int64)  # (text, number of the key, place in words)
    while (count := _hits(tuple(where), group.ngram, group, alphabet(), scratch, rows)) > len(rows):
        rows = np.empty((count, 3), np.int64)
    rows = rows[:count]
    if group.ngram < _WHOLE_BELOW:  # only texts that are exactly so many words
        sizes = [
            len(_grams_of((int(where.addresses[t]), int(where.lengths[t])), 1, scratch)) for t in rows[:, 0]
        ]
        rows = rows[np.array(sizes, np.int64) == group.ngram]
    text, key, place = rows.T
    counts = group.firsts[key + 1] - group.firsts[key]
    # the entries of each key: [first, first + 1, ...], end to end
    entries = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - group.firsts[key], counts)
    text, place = np.repeat(text, counts), np.repeat(place, counts)
    ngram = np.full_like(text, group.ngram)
    return np.stack([text, group.items[entries], group.positions[entries], place, ngram])


def _span(text: str, hits: NDArray[np.int64], ngram: int) -> str:
    """The longest stretch of a text that n-grams starting at the words ``hits`` cover without a gap."""
    words = np.unique(hits)
    runs = np.split(words, np.flatnonzero(np.diff(words) > ngram) + 1)
    longest = max(runs, key=lambda run: int(run[-1] - run[0]))
    raw = text.encode()
    stored = pa.array([text], pa.large_string())
    place = tuple(int(column[0]) for column in places(stored))
    starts = np.empty(len(raw) + 1, np.int64)  # byte of each word
    _text_grams(
        place, 1, alphabet(), new_shingle_scratch(1, starts=True), np.empty(len(raw) + 1, np.uint64), starts
    )
    last = int(starts[longest[-1] + ngram - 1])
    # the last word to its end; the piece may end within a character
    tail, classes = raw[last : last + 256].decode(errors="ignore"), alphabet().classes
    for i, character in enumerate(tail):
        kind = classes[ord(character)] if ord(character) < 65536 else SINGLE
        if kind in (SINGLE, SEPARATOR):
            tail = tail[: max(i, 1)] if kind == SINGLE else tail[:i]
            break
    return raw[int(starts[longest[0]]) : last].decode() + tail


def _grams_of(place: tuple[int, int], ngram: int, scratch: ShingleScratch) -> NDArray[np.uint64]:
    """The n-grams of the text at (address, bytes), in order."""
    keys = np.empty(place[1] + 1, np.uint64)
    return keys[: _text_grams(place, ngram, alphabet(), scratch, keys, np.empty(0, np.int64))]


def _no_matches() -> Matches:
    nothing = np.empty(0, np.int64)
    return Matches(nothing, nothing, np.empty(0, np.float32), pa.array([], pa.string()))
