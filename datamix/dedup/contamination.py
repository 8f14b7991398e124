"""Decontamination: training records that hold too much of an evaluation item.

The share of an item is the part of its words that stand in the record in runs of at least ``ngram`` words (a character
of an unspaced script is a word). A record is reported when the share reaches ``min_overlap``. N-grams that more than
32 items have are the template of a benchmark ("Answer the following question ..."): they are left out of the share, above and
below the line. An item shorter than ``ngram`` must stand there whole; one of fewer than five words must be the
whole text, or every text that mentions it would go.

Cost: one look-up an n-gram, about 15 ns a training word on one core; memory is the table of the items (20 bytes a word).

Source: Lambert et al. 2024, Tulu 3, section 3.2 (8-grams, half the tokens); Brown et al. 2020 (13-grams).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.kernels import Kernel
from datamix.core.records import texts
from datamix.dedup.decide import Signed
from datamix.dedup.kernels import SEPARATOR, SINGLE
from datamix.dedup.signatures import Alphabet, ShingleScratch, alphabet
from datamix.dedup.spec import ContaminationSpec
from datamix.dedup.text_columns import Places, flat_texts, map_file, places

if TYPE_CHECKING:
    pass

_TEMPLATE_ITEMS = 32
_WHOLE_BELOW = 5  # words


@dataclass(frozen=True)
class Matches:
    """Training records that hold an evaluation item; where several are held, the one with the largest share."""

    records: NDArray[np.int64]  # [num_matches] ordinal of the training record, ascending
    items: NDArray[np.int64]  # [num_matches] ordinal of the evaluation item, over all arrays
    shares: NDArray[np.float32]  # [num_matches]
    spans: pa.Array  # [num_matches] the longest matched stretch, as it stands in the training record


@dataclass(frozen=True)
class _Group:
    """The n-grams of all items that are matched by the same n."""

    ngram: int
    table: GramTable
    items: NDArray[np.int64]  # [num_entries] item, by key
    positions: NDArray[np.int64]  # [num_entries] first word of the n-gram in the item


@dataclass(frozen=True)
class EvalIndex:
    """The n-grams of evaluation items, ready to be looked up."""

    groups: tuple[_Group, ...]
    num_words: NDArray[np.int64]  # [num_items] words that n-grams of its own cover
    min_overlap: float


def overlap(
    train: Sequence[Signed], evals: Sequence[pa.Array], spec: ContaminationSpec, *, threads: int | None = None
) -> list[Matches]:
    """Match the records of each training source against evaluation items (texts of their ``spec.fields``)."""
    index = index_items(evals, spec)
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        found = []
        for source in train:
            parts: list[Matches] = []
            sizes: list[int] = []
            for path in source.batches:  # one file at a time stays mapped
                batches = map_file(path).batches
                sizes += map(len, batches)
                parts += pool.map(lambda b, k=source.kind: find(index, texts(b, k, spec.fields)), batches)
            merged = _joined(parts, sizes)
            found.append(merged if source.alive is None else _only(merged, source.alive[merged.records]))
    return found


def index_items(evals: Sequence[pa.Array], spec: ContaminationSpec) -> EvalIndex:
    """The index of the items in ``evals``, which are numbered through."""
    pass
    from datamix.dedup.signatures import new_shingle_scratch

    letters, scratch = alphabet(), new_shingle_scratch(spec.ngram)
    item = 0
    grams: dict[int, list[tuple[int, NDArray[np.uint64]]]] = {}
    for array in evals:
        for chunk in flat_texts(array):
            for place in zip(*(column.tolist() for column in places(chunk)), strict=True):
                num_words = len(all_grams(place, 1, letters, scratch))
                ngram = min(spec.ngram, num_words)
                if ngram:
                    grams.setdefault(ngram, []).append((item, all_grams(place, ngram, letters, scratch)))
                item += 1
    num_words_own = np.zeros(item, np.int64)
    groups = [_group(ngram, grams[ngram], num_words_own) for ngram in sorted(grams)]
    return EvalIndex(tuple(groups), num_words_own, spec.min_overlap)


def _group(ngram: int, grams: list[tuple[int, NDArray[np.uint64]]], num_words: NDArray[np.int64]) -> _Group:
    pass

    keys = np.concatenate([k for _, k in grams])
    items = np.concatenate([np.full(len(k), item) for item, k in grams])
    positions = np.concatenate([np.arange(len(k)) for _, k in grams])
    if ngram >= _WHOLE_BELOW:
        order = np.lexsort((items, keys))
        new_key = np.append(True, np.diff(keys[order]) > 0)
        new_pair = new_key | np.append(True, np.diff(items[order]) > 0)
        sharers = np.add.reduceat(new_pair, np.flatnonzero(new_key), dtype=np.int64)
        own = ~np.isin(keys, keys[order][new_key][sharers > _TEMPLATE_ITEMS])
        keys, items, positions = keys[own], items[own], positions[own]
    np.add.at(num_words, items, _covered(items, positions, ngram))
    order = np.argsort(keys, kind="stable")
    distinct, firsts = np.unique(keys[order], return_index=True)
    table = gram_table(distinct, np.append(firsts, len(keys)).astype(np.int64))
    return _Group(ngram, table, items[order], positions[order])


def _covered(groups: NDArray[np.int64], positions: NDArray[np.int64], ngram: int) -> NDArray[np.int64]:
    """Words each n-gram covers that the next one of its group does not; rows sorted by group, then position."""
    new = np.full(len(groups), ngram, np.int64)
    same = groups[1:] == groups[:-1]
    new[:-1][same] = np.minimum(ngram, np.diff(positions)[same])
    return new


def find(index: EvalIndex, array: pa.Array) -> Matches:
    """The texts of an array that hold an item; ``records`` are rows of the array."""
    rows = [found for group in index.groups for found in _hits(group, array)]
    if not rows:
        return _no_matches()
    text, item, position, place, ngram = np.concatenate(rows, axis=1)
    order = np.lexsort((place, position, item, text))
    text, item, position, place, ngram = (column[order] for column in (text, item, position, place, ngram))
    pair = np.cumsum(np.append(0, (np.diff(text) != 0) | (np.diff(item) != 0)))
    first = np.flatnonzero(np.append(True, np.diff(pair) > 0))
    covered = np.zeros(len(first), np.int64)
    np.add.at(covered, pair, _new_words(pair, position, ngram))
    shares = covered / index.num_words[item[first]]
    best = _best_of_each(text[first], item[first], shares, index.min_overlap)
    spans = []
    for i in best.tolist():
        mine = pair == i
        spans.append(_span(array[int(text[first[i]])].as_py(), place[mine], int(ngram[first[i]])))
    return Matches(
        text[first[best]], item[first[best]], shares[best].astype(np.float32), pa.array(spans, pa.string())
    )


def _new_words(
    pair: NDArray[np.int64], position: NDArray[np.int64], ngram: NDArray[np.int64]
) -> NDArray[np.int64]:
    """As ``_covered``; one n-gram that stands at several places of a text counts once."""
    new = ngram.copy()
    same = pair[1:] == pair[:-1]
    new[:-1][same] = np.minimum(ngram[:-1], np.diff(position))[same]
    return new


def _best_of_each(
    text: NDArray[np.int64], item: NDArray[np.int64], shares: NDArray[np.float64], least: float
) -> NDArray[np.int64]:
    """Of each text the pair with the largest share, of equals the first item; only shares of at least ``least``."""
    order = np.lexsort((item, -shares, text))
    order = order[shares[order] >= least]
    _, first = np.unique(text[order], return_index=True)
    best: NDArray[np.int64] = order[first]
    return best


def _hits(group: _Group, array: pa.Array) -> Iterator[NDArray[np.int64]]:
    """Rows (text, item, position in the item, place in the text, n) ``[5, num_hits]``."""
    pass
    from datamix.dedup.signatures import new_shingle_scratch

    letters, scratch = alphabet(), new_shingle_scratch(group.ngram)
    where = places(array)
    rows = hits(where, group.ngram, group.table, letters, scratch)
    if group.ngram < _WHOLE_BELOW:
        rows = _whole(rows, where.addresses, where.lengths, group.ngram)
    if len(rows) == 0:
        return
    firsts = group.table.firsts
    counts = firsts[rows[:, 1] + 1] - firsts[rows[:, 1]]
    entries = np.repeat(firsts[rows[:, 1]], counts) + _runs(counts)
    text, place = np.repeat(rows[:, 0], counts), np.repeat(rows[:, 2], counts)
    yield np.stack(
        [text, group.items[entries], group.positions[entries], place, np.full_like(text, group.ngram)]
    )


def _runs(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """``[2, 3] -> [0, 1, 0, 1, 2]``."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def _whole(
    rows: NDArray[np.int64], addresses: NDArray[np.int64], lengths: NDArray[np.int64], ngram: int
) -> NDArray[np.int64]:
    """Only the hits in texts that are exactly ``ngram`` words long."""
    pass
    from datamix.dedup.signatures import new_shingle_scratch

    letters, scratch = alphabet(), new_shingle_scratch(1)
    alone = [
        len(all_grams((int(addresses[t]), int(lengths[t])), 1, letters, scratch)) == ngram
        for t in rows[:, 0].tolist()
    ]
    return rows[np.array(alone, np.bool_)]


def _span(text: str, found: NDArray[np.int64], ngram: int) -> str:
    """The longest stretch of a text that n-grams starting at the words ``found`` cover without a gap."""
    pass
    from datamix.dedup.signatures import new_shingle_scratch

    words = np.unique(found)
    runs = np.split(words, np.flatnonzero(np.diff(words) > ngram) + 1)
    longest = max(runs, key=lambda run: int(run[-1] - run[0]))
    stored = pa.array([text], pa.large_string())
    address, length = (int(column[0]) for column in places(stored))
    starts = word_starts((address, length), alphabet(), new_shingle_scratch(1, starts=True))
    raw = text.encode()
    last = int(starts[longest[-1] + ngram - 1])
    return raw[int(starts[longest[0]]) : last].decode() + _first_word(raw[last : last + 256])


def _first_word(raw: bytes) -> str:
    """The word at the start of UTF-8 bytes, which may end within a character."""
    classes = alphabet().classes
    text = raw.decode(errors="ignore")
    for i, character in enumerate(text):
        kind = classes[ord(character)] if ord(character) < 65536 else SINGLE
        if kind == SINGLE:
            return text[: max(i, 1)]
        if kind == SEPARATOR:
            return text[:i]
    return text


def _no_matches() -> Matches:
    nothing = np.empty(0, np.int64)
    return Matches(nothing, nothing, np.empty(0, np.float32), pa.array([], pa.string()))


def _only(matches: Matches, wanted: NDArray[np.bool_]) -> Matches:
    return Matches(
        matches.records[wanted],
        matches.items[wanted],
        matches.shares[wanted],
        matches.spans.filter(pa.array(wanted)),
    )


def _joined(parts: Sequence[Matches], sizes: Sequence[int]) -> Matches:
    """The matches of the batches of one source, records numbered through."""
    if not parts:
        return _no_matches()
    starts = np.cumsum([0, *sizes[:-1]])
    return Matches(
        np.concatenate([part.records + start for part, start in zip(parts, starts, strict=True)]),
        np.concatenate([part.items for part in parts]),
        np.concatenate([part.shares for part in parts]),
        pa.concat_arrays([part.spans for part in parts]),
    )


_place = Kernel("dedup", "grams", "place")
_text_grams = Kernel("dedup", "grams", "text_grams")
_gram_hits = Kernel("dedup", "grams", "hits")


class GramTable(NamedTuple):
    """An open-addressed table of n-gram keys; the entries of key k are ``firsts[k]..firsts[k + 1]``."""

    slots: NDArray[np.int32]  # [power of two, at most a quarter full] number of the key, -1
    keys: NDArray[np.uint64]  # [num_keys]
    firsts: NDArray[np.int64]  # [num_keys + 1]


def gram_table(keys: NDArray[np.uint64], firsts: NDArray[np.int64]) -> GramTable:
    """A table of distinct keys."""
    slots = np.full(1 << max(8, int(4 * len(keys)).bit_length()), -1, np.int32)
    _place(keys, slots)
    return GramTable(slots, keys, firsts)


def hits(
    places: Places, ngram: int, table: GramTable, alphabet: Alphabet, scratch: ShingleScratch
) -> NDArray[np.int64]:
    """Rows (text, key number, place in words) ``[num_hits, 3]`` wherever a text holds a gram of the table."""
    rows = np.empty((256, 3), np.int64)
    while (count := _gram_hits(tuple(places), ngram, table, alphabet, scratch, rows)) > len(rows):
        rows = np.empty((count, 3), np.int64)
    return rows[:count]


def all_grams(
    place: tuple[int, int], ngram: int, alphabet: Alphabet, scratch: ShingleScratch
) -> NDArray[np.uint64]:
    """The n-grams of one text, in order."""
    keys = np.empty(place[1] + 1, np.uint64)
    return keys[: _text_grams(place, ngram, alphabet, scratch, keys, np.empty(0, np.int64))]


def word_starts(place: tuple[int, int], alphabet: Alphabet, scratch: ShingleScratch) -> NDArray[np.int64]:
    """The byte at which each word of one text starts; the scratch must note starts."""
    starts = np.empty(place[1] + 1, np.int64)
    return starts[: _text_grams(place, 1, alphabet, scratch, np.empty(place[1] + 1, np.uint64), starts)]
