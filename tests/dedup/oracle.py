"""What the kernels must agree with: word n-grams by regular expression, Jaccard by Python sets, files on disk."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from datamix.core.records import SCHEMAS
from datamix.dedup import DedupeSpec, Signed, sign

_WORD = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff]|[^\W\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff]+")


def words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def shingles(text: str, ngram: int = 5) -> set[tuple[str, ...]]:
    found = words(text)
    if 0 < len(found) < ngram:
        return {tuple(found)}
    return {tuple(found[i : i + ngram]) for i in range(len(found) - ngram + 1)}


def jaccard(a: str, b: str, ngram: int = 5) -> float:
    left, right = shingles(a, ngram), shingles(b, ngram)
    return len(left & right) / len(left | right) if left and right else 0.0


def true_pairs(texts: Sequence[str], threshold: float) -> list[tuple[int, int]]:
    """All pairs at least this similar, by brute force over those that share a shingle."""
    sets = [shingles(text) for text in texts]
    holders: dict[tuple[str, ...], list[int]] = {}
    meeting: set[tuple[int, int]] = set()
    for i, own in enumerate(sets):
        for shingle in own:
            meeting.update((j, i) for j in holders.get(shingle, ()))
            holders.setdefault(shingle, []).append(i)
    return [(i, j) for i, j in meeting if len(sets[i] & sets[j]) >= threshold * len(sets[i] | sets[j])]


def text_batch(texts: Sequence[str]) -> pa.RecordBatch:
    rows = [{"slice": 0, "record": i, "text": t, "meta": None} for i, t in enumerate(texts)]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMAS["text"])


def sft_batch(talks: Sequence[Sequence[tuple[str, str]]], tools: str | None = None) -> pa.RecordBatch:
    rows = [
        {"slice": 0, "record": i, "messages": [{"role": r, "content": c} for r, c in talk], "tools": tools}
        for i, talk in enumerate(talks)
    ]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMAS["sft"])


def stored(
    folder: Path,
    batch: pa.RecordBatch,
    spec: DedupeSpec,
    *,
    kind: str = "text",
    cuts: Sequence[int] = (),
    rank: int = 0,
    removable: bool = True,
    alive: object = None,
) -> Signed:
    """A batch of records and its signatures as Arrow files, cut at ``cuts``."""
    folder.mkdir(parents=True)
    bounds = [0, *cuts, len(batch)]
    names: dict[str, list[str]] = {"signatures": [], "batches": []}
    for i, (low, high) in enumerate(itertools.pairwise(bounds)):
        part = batch.slice(low, high - low)
        for name, written in (("batches", part), ("signatures", sign(part, kind, spec))):
            path = folder / f"{name}-{i}.arrow"
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, written.schema) as writer:
                writer.write_batch(written)
            names[name].append(str(path))
    return Signed(
        folder.name, tuple(names["signatures"]), tuple(names["batches"]), kind, rank, removable, alive
    )


def corpus(seed: int, num: int = 120, *, chinese: bool = False) -> list[str]:
    """Texts of a small vocabulary with planted copies, edits and truncations."""
    rng = random.Random(seed)
    vocabulary = (
        list(
            "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可里后小么心多天而能好都然没日于起还发成事只作当想看文无开手用主行方又如前所本见经头面公同三已老从动两长"
        )
        if chinese
        else [f"w{i}" for i in range(400)]
    )
    joint = "" if chinese else " "
    texts: list[str] = []
    while len(texts) < num:
        made = [rng.choice(vocabulary) for _ in range(rng.choice((3, 12, 40, 90)))]
        texts.append(joint.join(made))
        for _ in range(rng.choice((0, 0, 1, 3))):
            other = list(made)
            for _ in range(rng.choice((0, 1, 1, 2, 4, 8))):
                other[rng.randrange(len(other))] = rng.choice(vocabulary)
            texts.append(joint.join(other[: len(other) - rng.choice((0, 0, 1, 6))]) or "x")
    rng.shuffle(texts)
    return texts
