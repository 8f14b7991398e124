"""Drop pairs that say nothing about which answer is better: equal answers, or an answer without words.

Looks at records of kind preference; others pass. Answers are compared turn by turn with blanks around them ignored.
Pairs that contradict each other stand in different records: whether they may stay is an option of this step, but
they are found where fates are decided.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from datamix.clean.fields import join_turns
from datamix.core.records import Fields, RecordKind

_PARTS = ("reasoning", "content", "tool_calls")


@dataclass(frozen=True)
class PreferenceChecks:
    """Options of ``preference_checks``: which of them to make."""

    equal_answers: bool = True
    empty_answer: bool = True  # either of a pair; the only one of an unpaired record
    contradictions: bool = (
        False  # A over B here, B over A there: found when all records are known, not by this step
    )


def check_preference(
    batch: pa.RecordBatch, kind: RecordKind, options: PreferenceChecks, _: Fields
) -> pa.Array:
    """``preference_checks_NAME`` of the first check that each record fails, else null."""
    none = pa.nulls(batch.num_rows, pa.string())
    if kind != "preference":
        return none
    chosen, rejected = (
        pc.utf8_trim_whitespace(join_turns(batch.column(name), None, _PARTS, "\x1e"))
        for name in ("chosen", "rejected")
    )
    found = none
    if options.empty_answer:
        empty = pc.or_kleene(pc.equal(chosen, ""), pc.equal(rejected, ""))
        found = pc.if_else(pc.fill_null(empty, False), "preference_checks_empty_answer", found)
    if options.equal_answers:
        equal = pc.fill_null(pc.equal(chosen, rejected), False)
        found = pc.coalesce(found, pc.if_else(equal, "preference_checks_equal_answers", none))
    return found
