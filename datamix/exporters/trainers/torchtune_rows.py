"""Rows of a datamix set for torchtune: copy of a file that `datamix` writes beside them, needs pyarrow and torch only.

    dataset:
      _component_: datamix_rows.rows
      folder: train

Labels are shifted left by one, as torchtune's own datasets give them. Packed rows come padded to the longest row, with
``input_pos`` and ``seq_lens``: set ``dataset.packed`` so that its packed collator and block mask are used.
"""

from __future__ import annotations

import glob
import os
from typing import Any

import pyarrow.parquet as pq
import torch

IGNORED = -100


class Rows(torch.utils.data.Dataset):  # type: ignore[misc]
    """Rows in training order; keep ``shuffle: False``."""

    def __init__(self, folder: str, packed: bool, max_seq_len: int, filler_id: int) -> None:
        self.table = pq.read_table(sorted(glob.glob(os.path.join(folder, "*.parquet"))), memory_map=True)
        self.packed, self.max_seq_len, self.filler_id = packed, max_seq_len, filler_id

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row = {name: self.table[name][i].as_py() for name in self.table.column_names}
        tokens, labels = row["input_ids"], [*row["labels"][1:], IGNORED]
        if not self.packed:
            return {"tokens": tokens, "labels": labels}
        rest = self.max_seq_len - len(tokens)
        positions = [p for length in row["seq_lengths"] for p in range(length)] + list(range(rest))
        return {
            "tokens": torch.tensor(tokens + [self.filler_id] * rest),
            "labels": torch.tensor(labels + [IGNORED] * rest),
            "input_pos": torch.tensor(positions),
            "seq_lens": torch.tensor(row["seq_lengths"] + ([rest] if rest else [])),
        }


def rows(
    tokenizer: Any, folder: str = "train", packed: bool = False, max_seq_len: int = 0, filler_id: int = 0
) -> Rows:
    """The component; torchtune passes its tokenizer first, which is not used: rows are tokens already."""
    return Rows(folder, packed, max_seq_len, filler_id)
