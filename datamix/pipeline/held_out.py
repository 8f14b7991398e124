"""Which records are held out for validation: so many of the input records, whatever number of answers or pairs each makes.

An input record goes to one side with all that was made of it, and with all of its group where the recipe names a field
(``group_by``). The smallest seeded hashes are taken: of a record's content, so that a new source moves no record between the
splits, or of the value of the field, so that a group is on one side in every source. Costs about 60 bytes a record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.errors import RecipeError
from datamix.core.hashing import content_keys, fixed_binary, key_ranks, mix64, salt
from datamix.pipeline.prepare import read_batches
from datamix.pipeline.shards import Identities, PreparedPart, SourceShards

Rows = NDArray[np.int64]
_ALIKE_SHARE = 0.05  # of the held-out records: fewer that begin like training records are not worth a notice


@dataclass(frozen=True)
class Split:
    """How many records of each source are held out, and the field whose equal values stay together."""

    share: float | None = None
    records: int | None = None
    group_by: str | None = None


def sample_records(rows: Rows, known: Identities, seed: np.uint64, count: int) -> Rows:
    """Those of ``rows`` that come from the ``count`` input records with the smallest seeded ranks."""
    record, ranks = _records(rows, known, seed)
    chosen = np.argsort(ranks, kind="stable")[:count]
    return rows[np.isin(record, chosen)]


def _records(rows: Rows, known: Identities, seed: np.uint64) -> tuple[Rows, NDArray[np.uint64]]:
    """The input record of each row, numbered from 0, and a seeded rank of each record's content.

    A record that gave several rows ranks by one of them, so that it is as likely to be chosen as any other.
    """
    changes = (np.diff(known.file[rows]) != 0) | (np.diff(known.record[rows]) != 0)
    starts = np.flatnonzero(np.concatenate([np.ones(min(len(rows), 1), bool), changes]))
    record = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(rows))))
    keys = known.key[rows]
    smallest = np.lexsort((keys.view(np.uint64)[:, 0], record))[starts] if len(rows) else rows
    return record, key_ranks(keys[smallest], seed)


def hold_out(
    split: Split, seed: int, alive: Sequence[NDArray[np.bool_]], ids: Sequence[Identities]
) -> list[Rows]:
    """The rows of each source that are held out. Raises RecipeError where no record has the field of ``group_by``."""
    groups = [known.group for known in ids if known.group is not None]
    if split.group_by and not any(group.any() for group in groups):
        raise RecipeError(
            f"validation.group_by: no record of any source has the field {split.group_by!r}. Name a field of the files, or take it out."
        )
    held: list[Rows] = []
    held_groups = np.empty(0, np.uint64)
    for live, known in zip(alive, ids, strict=True):
        rows = np.flatnonzero(live)
        held.append(rows[_chosen(split, seed, rows, known)])
        if known.group is not None:
            held_groups = np.union1d(held_groups, known.group[held[-1]])
    held_groups = held_groups[held_groups != 0]
    for number, (live, known) in enumerate(zip(alive, ids, strict=True)):
        if known.group is not None:
            held[number] = np.union1d(held[number], np.flatnonzero(live & np.isin(known.group, held_groups)))
    return held


def _chosen(split: Split, seed: int, rows: Rows, known: Identities) -> NDArray[np.bool_]:
    """Which of the live rows of one source are held out: about as many records as asked, in whole groups."""
    record, ranks = _records(rows, known, salt(seed, "validation"))
    num_records = len(ranks)
    group = mix64(np.arange(num_records, dtype=np.uint64))  # each record by itself
    if known.group is not None:
        value = np.zeros(num_records, np.uint64)
        value[record] = known.group[rows]
        group = np.where(value != 0, value, group)
        ranks = np.where(value != 0, mix64(value ^ salt(seed, "validation")), ranks)
    _, first, of_group = np.unique(group, return_index=True, return_inverse=True)
    sizes = np.bincount(of_group, minlength=len(first))
    if len(first) < 2:
        return np.zeros(len(rows), bool)
    asked = split.records if split.records is not None else round((split.share or 0.0) * num_records)
    target = min(max(1, asked), num_records - 1)
    order = np.lexsort((first, ranks[first]))
    if sizes.max() == 1:
        taken = order[:target]
    else:  # groups one after the other, but those that lead further away from what is asked
        total, chosen = 0, []
        for number in order.tolist():
            if abs(total + sizes[number] - target) < target - total:
                total += int(sizes[number])
                chosen.append(number)
            if total >= target:
                break
        taken = np.array(chosen or [order[sizes[order].argmin()]], np.int64)
    is_taken: NDArray[np.bool_] = np.isin(of_group, taken)[record]
    return is_taken


def begin_alike(source: SourceShards, held: NDArray[np.bool_], train: NDArray[np.bool_]) -> int:
    """Held-out rows whose first question is that of a training row, such as another part of one conversation."""
    if source.kind == "text" or not held.any():
        return 0
    questions = _first_questions(source.parts)
    alike = int(np.isin(questions[held], questions[train]).sum())
    return alike if alike >= _ALIKE_SHARE * held.sum() else 0


def _first_questions(parts: Sequence[PreparedPart]) -> NDArray[np.uint64]:
    """A hash of the first user turn of each prepared record; of one without any, a number that no other has."""
    hashes = [np.empty(0, np.uint64)]
    for part in parts:
        for batch in read_batches(str(part.records)):
            lists = batch.column("messages")
            offsets = lists.offsets.to_numpy().astype(np.int64)
            flat = lists.values
            users = np.flatnonzero((flat.field("role").to_numpy(zero_copy_only=False)) == "user")
            at = np.searchsorted(users, offsets[:-1])
            first = np.append(users, len(flat))[at]
            has = first < offsets[1:]
            texts = flat.field("content").take(pa.array(first[has]))
            keys = key_ranks(fixed_binary(content_keys(texts)), salt(0, "first question"))
            values = (
                salt(0, "no question")
                + np.arange(len(batch), dtype=np.uint64)
                + np.uint64(sum(map(len, hashes)))
            )
            values[has] = keys
            hashes.append(values)
    return np.concatenate(hashes)
