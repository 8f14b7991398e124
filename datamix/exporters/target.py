"""What a sink knows of the set it writes, and where a text format finds the words of a record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.records import Kind, row_schema


@dataclass(frozen=True)
class Weighing:
    """How rows are weighed so that a trainer that averages its loss over one counts as if over the other."""

    trainer: Literal["token", "example"]
    mean_loss_tokens: float  # of the rows of train/ that train anything


@dataclass(frozen=True)
class SetInfo:
    """The training set that is being written, the same in every task that writes a part of it."""

    name: str
    kind: Kind
    packed: bool  # documents of one row kept apart by positions (best_fit)
    max_length: int | None  # tokens a row
    vocab_size: int
    eos_token_id: int | None
    pad_token_id: int | None
    sources: tuple[str, ...]
    stages: tuple[str, ...]
    tokenizer_folder: str  # name beside the format folders: "tokenizer"
    shares: tuple[tuple[str, float], ...]  # asked, by source
    paired: bool = True  # preference: pairs, or completions with a label
    meta: bool = False
    weighing: Weighing | None = None  # None: no column ``weight``

    @property
    def schema(self) -> pa.Schema:
        """Columns of the rows, used where a shard holds none."""
        return row_schema(self.kind, self.packed, self.paired, self.meta, self.weighing is not None)

    @property
    def filler_id(self) -> int:
        """Token id that fills padded places; its label is always -100."""
        for token_id in (self.pad_token_id, self.eos_token_id):
            if token_id is not None:
                return token_id
        return 0


class RecordSource(Protocol):
    """The words of the records that rows were made from, for formats that hold text."""

    def fetch_many(self, files: NDArray[np.int64], records: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Records as their rows of ``records.SCHEMAS``, in the order asked: ``{"text"}`` or ``{"messages", ...}``.

        ``files`` and ``records`` ``[num_records]`` are those of the rows' ``records``.
        """
        ...
