"""Duplicates: exact, near (MinHash LSH, verified by exact Jaccard), against evaluation sets, below the document."""

from datamix.dedupe.decide import Decision, Signed, decide, leaked
from datamix.dedupe.lines import Cut, LineCounts, LineSpec, count_lines, cut_lines, repeated
from datamix.dedupe.overlap import EvalIndex, Matches, find, index_items, overlap
from datamix.dedupe.sign import sign
from datamix.dedupe.spec import ContaminationSpec, DedupeSpec, DuplicateFields, NearSpec
from datamix.dedupe.table import Deduplicated, dedupe

__all__ = [
    "ContaminationSpec",
    "Cut",
    "Decision",
    "DedupeSpec",
    "Deduplicated",
    "DuplicateFields",
    "EvalIndex",
    "LineCounts",
    "LineSpec",
    "Matches",
    "NearSpec",
    "Signed",
    "count_lines",
    "cut_lines",
    "decide",
    "dedupe",
    "find",
    "index_items",
    "leaked",
    "overlap",
    "repeated",
    "sign",
]
