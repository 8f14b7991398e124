"""Duplicates: exact, near (MinHash LSH, verified by exact Jaccard), against evaluation sets, below the document."""

from datamix.dedupe.decide import Decision, Signed, decide, leaked
from datamix.dedupe.overlap import EvalIndex, Matches, find, index_items, overlap
from datamix.dedupe.sign import sign
from datamix.dedupe.spec import ContaminationSpec, DedupeSpec, DuplicateFields, NearSpec
from datamix.dedupe.table import Deduplicated, dedupe

__all__ = [
    "ContaminationSpec",
    "Decision",
    "DedupeSpec",
    "Deduplicated",
    "DuplicateFields",
    "EvalIndex",
    "Matches",
    "NearSpec",
    "Signed",
    "decide",
    "dedupe",
    "find",
    "index_items",
    "leaked",
    "overlap",
    "sign",
]
