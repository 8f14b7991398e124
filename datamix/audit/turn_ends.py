"""Whether the trained spans of conversations look like turns: each ends as the template ends a turn.

Nothing but the ids is needed: in templates that close a turn with a control token, every trained span that stops
inside its record stops at one. A label unmasked in a question, or masked within an answer, makes a span that does not.
Where a template closes turns with plain text, spans rarely end at control tokens, and nothing is concluded.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
from numpy.typing import NDArray

from datamix.audit.row_laws import Lists, lists, pieces
from datamix.core.arrays import IGNORE_INDEX


def control_ids(tokenizer: Path) -> NDArray[np.int64]:
    """Ids of the control tokens of a ``tokenizer.json``, sorted; none where it is damaged, which another check tells."""
    try:
        added = orjson.loads(tokenizer.read_bytes())["added_tokens"]
        return np.array(sorted(t["id"] for t in added if t.get("special")), np.int64)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return np.zeros(0, np.int64)


class TurnEnds:
    """Counts how trained spans end, over all rows."""

    def __init__(self, control: NDArray[np.int64]) -> None:
        self._control = control
        self._num_closed = 0
        self.num_spans = 0  # that stop inside their record
        self.num_odd = 0  # of them, those that end at no control token
        self.first_odd = ""  # where the first of those is

    @property
    def telling(self) -> bool:
        """Whether spans end at control tokens as a rule, so that one that does not is wrong."""
        return self._num_closed > self.num_odd

    def add(self, batch: pa.RecordBatch, place: str, first: int) -> None:
        """Take the spans of one batch, whose rows begin at number ``first`` of ``place``."""
        ids, labels = lists(batch.column("input_ids")), lists(batch.column("labels"))
        if not np.array_equal(ids.offsets, labels.offsets):
            return
        ends = _span_ends(labels, _record_ends(batch))
        closed = np.isin(ids.values[ends], self._control)
        odd = ends[~closed]
        self.num_spans += len(ends)
        self._num_closed += int(closed.sum())
        if len(odd) and not self.num_odd:
            row = int(np.searchsorted(ids.offsets, odd[0], side="right")) - 1
            position = int(odd[0] - ids.offsets[row])
            self.first_odd = (
                f"{place} {first + row:,} trains a span that ends within a turn, at position {position:,}"
            )
        self.num_odd += len(odd)


def _record_ends(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Where each piece of a record ends, in flat positions."""
    ends: NDArray[np.int64] = np.cumsum(pieces(batch).length)
    return ends


def _span_ends(labels: Lists, record_ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Flat positions of the last token of each trained span that stops before its record does."""
    trained = labels.values != IGNORE_INDEX
    border = np.zeros(len(trained) + 1, np.bool_)
    border[np.clip(record_ends, 0, len(trained))] = True
    follows = np.append(trained[1:], False)
    return np.flatnonzero(trained & ~follows & ~border[1:])
