"""Tokens end to end in flat files, with where rows and documents end beside them: npy, datatrove, torchtitan, OLMo-core.

*npy*: ``input_ids`` in the smallest dtype that holds the vocabulary, ``rows`` and ``documents`` where each ends (int64, from 0),
``loss_mask`` one byte a token where its label counts: ``labels = where(loss_mask, input_ids, -100)``.
*datatrove* (nanotron's Nanoset): ``X.ds`` ids without a header (uint16 or uint32), ``X.ds.index`` where each document ends (uint64),
``X.ds.loss`` one byte a token where labels are masked, ``X.ds.metadata`` three lines: ``tokenizer|token_size``, tokens, the same for
people. Its readers cut windows of ``length + 1`` tokens from each file, without overlap, and drop its tail.
*torchtitan*, as its notes on custom data ask: ``tokens.bin`` little-endian uint32 whatever the vocabulary, ``offsets.bin`` uint64
``[num_rows + 1]``. *OLMo-core*: ``token_ids_part_00000.npy`` is a memory map (no npy header) whose dtype the trainer's config names;
``.csv.gz`` has rows ``start,end,id,src,loc`` (end exclusive, loc from 1, no header); ``labels_mask_part_00000.npy`` one byte a token.
An instance never crosses a file, and what is left of a file below the sequence length is dropped.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.arrays import IGNORE_INDEX, ragged
from datamix.core.records import Kind
from datamix.exporters.columns import as_tokens, piece_lengths, token_dtype
from datamix.exporters.export_format import ExportFormat
from datamix.exporters.folder import make_room, shard_name, split_folder, write_json, write_text

_GZIP_LEVEL = 1  # borders are a few bytes a document
Ends = tuple[
    pa.RecordBatch, NDArray[np.int64], NDArray[np.int64]
]  # a batch, the ends of its rows and documents


def pour(
    batches: Iterable[pa.RecordBatch], dtype: np.dtype[Any], tokens: BinaryIO, mask: BinaryIO | None = None
) -> Iterator[Ends]:
    """Append the ids of each batch and, where asked, one byte a token that is 1 where its label counts.

    Ends are in tokens from the start of the file.
    """
    written = 0
    for batch in batches:
        ids = ragged(batch, "input_ids")
        tokens.write(as_tokens(ids.flat, dtype).data)
        if mask is not None:
            mask.write((ragged(batch, "labels").flat != IGNORE_INDEX).view(np.uint8).data)
        documents = np.cumsum(piece_lengths(batch).flat, dtype=np.int64)
        yield batch, written + np.cumsum(ids.lengths), written + documents
        written += len(ids.flat)


def _poured(stream: Iterable[Ends]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The ends of all rows and of all documents of a file, each behind a 0, ``[count + 1]``."""
    rows, documents = [np.zeros(1, np.int64)], [np.zeros(1, np.int64)]
    for _, row_ends, document_ends in stream:
        rows.append(row_ends)
        documents.append(document_ends)
    return np.concatenate(rows), np.concatenate(documents)


@dataclass(frozen=True)
class Npy(ExportFormat):
    """``train/00000.input_ids.npy``, ``.loss_mask.npy``, ``.rows.npy``, ``.documents.npy``."""

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft")

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard; return its names."""
        parts = ("input_ids", "loss_mask", "rows", "documents")
        names = [shard_name(self.split, index, f".{part}.npy") for part in parts]
        dtype = token_dtype(self.info.vocab_size)
        with ExitStack() as stack:
            tokens, mask, *ends = [stack.enter_context(make_room(folder, name).open("w+b")) for name in names]
            flat = ((tokens, dtype), (mask, np.dtype(np.uint8)))
            for stream, kind in flat:
                _write_header(stream, kind, 0)
            rows, documents = _poured(pour(batches, dtype, tokens, mask))
            for stream, kind in flat:
                stream.seek(0)
                _write_header(stream, kind, int(rows[-1]))
            np.lib.format.write_array(ends[0], rows, version=(1, 0))
            np.lib.format.write_array(ends[1], documents, version=(1, 0))
        return names

    def command(self) -> str:
        """How it is read."""
        return 'np.load("train/00000.input_ids.npy", mmap_mode="r")'


def _write_header(stream: BinaryIO, dtype: np.dtype[Any], length: int) -> None:
    """numpy pads the header so that any length fits the same 128 bytes: it is written again when the length is known."""
    described = {"descr": dtype.str, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(stream, described)


@dataclass(frozen=True)
class Datatrove(ExportFormat):
    """``train/00000.ds``, ``.ds.index``, ``.ds.metadata`` and, for sft, ``.ds.loss``."""

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft")
    KEEPS: ClassVar[tuple[str, ...]] = ("ratio",)  # Nanoset shuffles the windows of all files

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard; return its names."""
        name = shard_name(self.split, index, ".ds")
        names = [name, f"{name}.index", f"{name}.metadata", f"{name}.loss"][
            : 4 if self.info.kind == "sft" else 3
        ]
        dtype = token_dtype(self.info.vocab_size)
        with ExitStack() as stack:
            tokens, *masks = [
                stack.enter_context(make_room(folder, n).open("wb")) for n in (name, *names[3:])
            ]
            _, documents = _poured(pour(batches, dtype, tokens, *masks))
        (folder / names[1]).write_bytes(documents[1:].astype("<u8").tobytes())
        count = int(documents[-1])
        size = float(count)
        units = iter(("T", "KT", "MT", "GT", "TT"))  # 1_500_000 -> 1.50 MT, for people
        unit = next(units)
        while size >= 1000 and unit != "TT":
            size, unit = size / 1000, next(units)
        head = f"{self.info.tokenizer_folder}|{dtype.itemsize}"
        write_text(folder, names[2], f"{head}\n{count}\n{size:.2f} {unit}")
        return names

    def command(self) -> str:
        """How it is read."""
        return (
            f'datatrove.utils.dataset.DatatroveFolderDataset("train", seq_len={self.info.max_length or 2048}, '
            f'filename_pattern="*.ds", token_size={token_dtype(self.info.vocab_size).itemsize}, return_positions=True)'
        )


@dataclass(frozen=True)
class Torchtitan(ExportFormat):
    """``train/00000.tokens.bin``, ``train/00000.offsets.bin``: row i is ``tokens[offsets[i]:offsets[i + 1]]``."""

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain",)
    KEEPS: ClassVar[tuple[str, ...]] = ("ratio", "order")  # nothing says where documents end

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard; return its names."""
        names = [shard_name(self.split, index, suffix) for suffix in (".tokens.bin", ".offsets.bin")]
        with make_room(folder, names[0]).open("wb") as tokens:
            rows, _ = _poured(pour(batches, np.dtype("<u4"), tokens))
        (folder / names[1]).write_bytes(rows.astype("<u8").tobytes())
        return names

    def command(self) -> str:
        """How it is read."""
        return (
            'tokens = np.memmap("train/00000.tokens.bin", np.uint32, "r"); '
            'offsets = np.memmap("train/00000.offsets.bin", np.uint64, "r"); row = tokens[offsets[i]:offsets[i + 1]]'
        )


@dataclass(frozen=True)
class Olmo(ExportFormat):
    """``train/token_ids_part_00000.npy`` and ``.csv.gz``, ``train/labels_mask_part_00000.npy``, ``dtype.json``."""

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain", "sft")

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned integer that holds the vocabulary."""
        return np.dtype("<u1") if self.info.vocab_size <= 1 << 8 else token_dtype(self.info.vocab_size)

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard; return its names."""
        base = f"{split_folder(self.split)}/token_ids_part_{index:05d}"
        names = [f"{base}.npy", f"{base}.csv.gz"]
        if self.info.kind == "sft":
            names.append(f"{split_folder(self.split)}/labels_mask_part_{index:05d}.npy")
        with ExitStack() as stack:
            tokens, packed, *masks = [
                stack.enter_context(make_room(folder, name).open("wb")) for name in names
            ]
            zipped = stack.enter_context(gzip.GzipFile("", "wb", _GZIP_LEVEL, packed, mtime=0))
            text = stack.enter_context(io.TextIOWrapper(cast(Any, zipped), encoding="utf-8", newline=""))
            lines = csv.writer(text, lineterminator="\n")
            for batch, _, ends in pour(batches, self.dtype, tokens, *masks):
                flat = batch.column("records").flatten()
                sources = np.repeat(batch.column("source").to_pylist(), piece_lengths(batch).lengths)
                starts = ends - flat.field("length").to_numpy()
                places = zip(flat.field("file").to_pylist(), flat.field("record").to_pylist(), strict=True)
                lines.writerows(
                    (start, end, f"{file}:{record}", source, record + 1)
                    for start, end, (file, record), source in zip(
                        starts.tolist(), ends.tolist(), places, sources.tolist(), strict=True
                    )
                )
        return names

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the dtype that the trainer's config must name."""
        return [write_json(folder, "dtype.json", {"dtype": self.dtype.name, "labels_mask_dtype": "bool"})]

    def keeps(self) -> tuple[str, ...]:
        """Its loader shuffles instances; the packed dataset gives it our borders, and attention that has none refuses them."""
        return ("ratio", "isolation") if self._by_document else ("ratio",)

    def command(self) -> str:
        """How it is read: whole documents by our borders, or windows of the files."""
        masks = ', label_mask_paths=["train/labels_mask_part_*.npy"]' if self.info.kind == "sft" else ""
        length, name, borders = self.info.max_length or 2048, "NumpyFSLDatasetConfig", ""
        if self._by_document:
            length = 1 << (length - 1).bit_length()  # its packing needs a power of two
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
        """Whether documents are kept apart: it would look for their ends at EOS, which is behind every turn too."""
        return self.info.packed or self.info.kind == "sft"
