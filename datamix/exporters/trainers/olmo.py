"""OLMo-core: raw ids in ``.npy`` (no npy header), document borders in ``.csv.gz``, label masks beside them.

``token_ids_part_00000.npy`` is a memory map whose dtype the trainer's config names; ``.csv.gz`` has rows
``start,end,id,src,loc`` (end exclusive, loc counted from 1, no header); ``labels_mask_part_00000.npy`` one byte a token. An
instance never crosses a file, and what is left of a file below the sequence length is dropped.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TextIO, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.records import Kind
from datamix.exporters.columns import Ends, write_ids, write_mask
from datamix.exporters.paths import make_room, split_folder, write_json
from datamix.exporters.target import SetInfo

_GZIP_LEVEL = 1  # borders are a few bytes a document


@dataclass(frozen=True)
class Olmo:
    """``train/token_ids_part_00000.npy`` and ``.csv.gz``, ``train/labels_mask_part_00000.npy``, ``dtype.json``."""

    info: SetInfo
    split: str

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft")

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned integer that holds the vocabulary."""
        for width in ("<u1", "<u2"):
            if self.info.vocab_size <= 1 + np.iinfo(width).max:
                return np.dtype(width)
        return np.dtype("<u4")

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard; return its names."""
        base = f"{split_folder(self.split)}/token_ids_part_{index:05d}"
        names = [f"{base}.npy", f"{base}.csv.gz"]
        if self.info.kind == "sft":
            names.append(f"{split_folder(self.split)}/labels_mask_part_{index:05d}.npy")
        ends = Ends()
        with ExitStack() as stack:
            tokens, packed, *masks = [
                stack.enter_context(make_room(folder, name).open("wb")) for name in names
            ]
            zipped = stack.enter_context(gzip.GzipFile("", "wb", _GZIP_LEVEL, packed, mtime=0))
            lines = stack.enter_context(io.TextIOWrapper(cast(Any, zipped), encoding="utf-8", newline=""))
            for batch in batches:
                write_ids(batch, tokens, self.dtype)
                if masks:
                    write_mask(batch, masks[0])
                _write_borders(batch, ends.add(batch), lines)
        return names

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the dtype that the trainer's config must name."""
        return [write_json(folder, "dtype.json", {"dtype": self.dtype.name, "labels_mask_dtype": "bool"})]

    def keeps(self) -> tuple[str, ...]:
        """Its loader shuffles instances; the packed dataset gives it our borders, and attention that has none refuses them."""
        return ("ratio", "isolation") if self._by_document else ("ratio",)

    def command(self) -> str:
        """How it is read: whole documents by our borders, or windows of what stands in the files."""
        masks = ', label_mask_paths=["train/labels_mask_part_*.npy"]' if self.info.kind == "sft" else ""
        length, name, borders = self.info.max_length or 2048, "NumpyFSLDatasetConfig", ""
        if self._by_document:
            length = 1 << (length - 1).bit_length()  # its packing wants a power of two
            name, borders = (
                "NumpyPackedFSLDatasetConfig",
                ", use_array_if_local=False, generate_doc_lengths=True",
            )
        return (
            f'{name}(paths=["train/token_ids_part_*.npy"], expand_glob=True{masks}, sequence_length={length}, '
            f"dtype=NumpyDatasetDType.{self.dtype.name}{borders}, tokenizer=TokenizerConfig("
            f"vocab_size={self.info.vocab_size}, eos_token_id={self.info.eos_token_id}, pad_token_id={self.info.filler_id}), "
            'work_dir="work")'
        )

    @property
    def _by_document(self) -> bool:
        """Whether documents are kept apart: it would look for their ends at EOS, which stands behind every turn too."""
        return self.info.packed or self.info.kind == "sft"


def _write_borders(batch: pa.RecordBatch, ends: NDArray[np.int64], lines: TextIO) -> None:
    lists = batch.column("records")
    flat = lists.flatten()
    owners = np.repeat(np.arange(len(batch)), np.diff(lists.offsets.to_numpy()))
    sources = batch.column("source").to_pylist()
    starts = ends - flat.field("length").to_numpy()
    files, numbers = flat.field("file").to_pylist(), flat.field("record").to_pylist()
    quoted = [_quoted(source) for source in sources]
    columns = (starts.tolist(), ends.tolist(), files, numbers, owners.tolist())
    lines.write(
        "".join(
            f"{start},{end},{file}:{number},{quoted[owner]},{number + 1}\n"
            for start, end, file, number, owner in zip(*columns, strict=True)
        )
    )


def _quoted(text: str) -> str:
    """A CSV field: quoted where it must be."""
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\n\r') else text
