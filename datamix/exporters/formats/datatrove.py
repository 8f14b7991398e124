"""datatrove's tokenized documents, which nanotron's Nanoset reads.

``X.ds`` ids without a header (uint16 or uint32), ``X.ds.index`` where each document ends (uint64, in tokens),
``X.ds.loss`` one byte a token where labels are masked, ``X.ds.metadata`` three lines: ``tokenizer|token_size``, tokens,
the same for people. The readers cut windows of ``length + 1`` tokens from each file, without overlap, and drop its tail.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pyarrow as pa

from datamix.core.records import Kind
from datamix.exporters.columns import pour, token_dtype
from datamix.exporters.paths import make_room, shard_name, write_text
from datamix.exporters.target import SetInfo


@dataclass(frozen=True)
class Datatrove:
    """``train/00000.ds``, ``.ds.index``, ``.ds.metadata`` and, for sft, ``.ds.loss``."""

    info: SetInfo
    split: str

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft")

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard; return its names."""
        name = shard_name(self.split, index, ".ds")
        path = make_room(folder, name)
        names = [name, f"{name}.index", f"{name}.metadata"]
        dtype = token_dtype(self.info.vocab_size)
        with ExitStack() as stack:
            tokens = stack.enter_context(path.open("wb"))
            mask = None
            if self.info.kind == "sft":
                names.append(f"{name}.loss")
                mask = stack.enter_context((folder / names[-1]).open("wb"))
            ends = pour(batches, tokens, dtype, mask)
        (folder / names[1]).write_bytes(ends.documents[1:].astype("<u8").tobytes())
        count = int(ends.documents[-1])
        write_text(
            folder, names[2], f"{self.info.tokenizer_folder}|{dtype.itemsize}\n{count}\n{_short(count)}"
        )
        return names

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """No extra files."""
        return []

    def keeps(self) -> tuple[str, ...]:
        """Nanoset shuffles the windows of all files."""
        return ("ratio",)

    def command(self) -> str:
        """How it is read."""
        length = self.info.max_length or 2048
        size = token_dtype(self.info.vocab_size).itemsize
        return (
            f'datatrove.utils.dataset.DatatroveFolderDataset("train", seq_len={length}, filename_pattern="*.ds", '
            f"token_size={size}, return_positions=True)"
        )


def _short(count: int) -> str:
    """``1_500_000`` -> ``1.50 MT``: tokens for people."""
    size = float(count)
    for unit in ("T", "KT", "MT", "GT"):
        if size < 1000:
            return f"{size:.2f} {unit}"
        size /= 1000
    return f"{size:.2f} TT"
