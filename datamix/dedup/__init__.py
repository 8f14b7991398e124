"""Duplicates: exact, near (MinHash LSH, verified by exact Jaccard), against evaluation sets, repeated lines."""

from datamix.dedup.contamination import EvalIndex, Matches, find, index_items, overlap
from datamix.dedup.decide import Decision, Deduplicated, Signed, decide, dedupe, leaked
from datamix.dedup.repeated_lines import CutLines, LineCounts, LineSpec, count_lines, cut_lines, repeated
from datamix.dedup.signatures import sign
from datamix.dedup.spec import ContaminationSpec, DedupeSpec, DuplicateFields, NearSpec

__all__ = [
    "ContaminationSpec",
    "CutLines",
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
