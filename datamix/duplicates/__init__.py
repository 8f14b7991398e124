"""Duplicates: exact, near (MinHash LSH, verified by exact Jaccard), against evaluation sets, below the document."""

from datamix.duplicates.decide import Decision, Signed, decide, leaked
from datamix.duplicates.lines import Cut, LineCounts, LineSpec, count_lines, cut_lines, repeated
from datamix.duplicates.overlap import EvalIndex, Matches, find, index_items, overlap
from datamix.duplicates.sign import sign
from datamix.duplicates.spec import ContaminationSpec, DedupeSpec, DuplicateFields, NearSpec
from datamix.duplicates.table import Deduplicated, dedupe

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
