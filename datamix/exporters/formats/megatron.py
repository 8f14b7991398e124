"""Megatron-core's indexed datasets: tokens in ``.bin``, lengths and offsets in ``.idx``, and the blend that keeps our ratio.

``documents``: a dataset a source (and stage), one document a piece; Megatron cuts samples from them itself and draws the
sources by the blend's weights, which are the tokens in the files. It finds borders by the end-of-document token alone, so a
piece that does not end with it (of a document that is cut) gets one, and each is counted. ``blocks``: one dataset of our rows
in our order, token for token. Megatron shuffles either; the ratio survives, and with ``--reset-position-ids
--reset-attention-mask`` documents stay apart. Layout of the index:
``MMIDIDX\\0\\0 | u64 1 | u8 dtype | u64 S | u64 D | i32[S] lengths | i64[S] byte offsets | i64[D] document borders``
(``megatron/core/datasets/indexed_dataset.py``). Costs 4 bytes a document.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datamix.core.arrays import ragged
from datamix.core.machine import files_below
from datamix.core.records import Kind
from datamix.exporters.columns import as_tokens, piece_lengths
from datamix.exporters.export_format import ExportFormat
from datamix.exporters.folder import (
    by_stage,
    make_room,
    split_folder,
    stage_files,
    write_json,
    write_text,
)

_MAGIC = b"MMIDIDX\x00\x00"
_CODES = {"uint16": 8, "int32": 4}


@dataclass(frozen=True)
class Megatron(ExportFormat):
    """``train/SOURCE-00000.bin`` and ``.idx`` (or ``train/rows-00000``), ``blend.json``, ``README.md``."""

    layout: Literal["documents", "blocks"] = "documents"

    KINDS: ClassVar[tuple[Kind, ...]] = ("pretrain",)

    @property
    def dtype(self) -> np.dtype[Any]:
        """What Megatron itself would choose: uint16 for vocabularies below 65,500, else int32."""
        return np.dtype("<u2") if self.info.vocab_size < 65_500 else np.dtype("<i4")

    def write(self, batches: Iterable[pa.RecordBatch], index: int, folder: Path) -> list[str]:
        """Write one shard, a dataset for each source (or one) and stage; return the names."""
        names: list[str] = []
        counts = {"documents": 0, "end_tokens_added": 0}
        for suffix, rows in by_stage(batches, self.info, self.split):
            lengths: dict[str, list[NDArray[np.int64]]] = {}
            bins: dict[str, BinaryIO] = {}
            prefixes = {
                d: f"{split_folder(self.split)}/{d}-{index:05d}{suffix}" for d in (*self.info.sources, "rows")
            }
            with ExitStack() as stack:
                for dataset, tokens, sizes, added in (part for batch in rows for part in self._parts(batch)):
                    counts["documents"] += len(sizes)
                    counts["end_tokens_added"] += added
                    if dataset not in bins:
                        path = make_room(folder, f"{prefixes[dataset]}.bin")
                        bins[dataset] = stack.enter_context(path.open("wb"))
                    bins[dataset].write(as_tokens(tokens, self.dtype).data)
                    lengths.setdefault(dataset, []).append(sizes)
            for prefix, sizes_of in ((prefixes[d], lengths[d]) for d in prefixes if d in bins):
                (folder / f"{prefix}.idx").write_bytes(encode_index(np.concatenate(sizes_of), self.dtype))
                names += [f"{prefix}.bin", f"{prefix}.idx"]
        if self.layout == "documents":
            names.append(write_json(folder, f"counts/{split_folder(self.split)}-{index:05d}.json", counts))
        return names

    def _parts(
        self, batch: pa.RecordBatch
    ) -> Iterator[tuple[str, NDArray[np.generic], NDArray[np.int64], int]]:
        """``(dataset, its tokens end to end, its documents' lengths, end tokens that were added)`` of a batch."""
        ids = ragged(batch, "input_ids")
        if self.layout == "blocks":
            yield "rows", ids.flat, ids.lengths, 0
            return
        lengths = piece_lengths(batch)
        codes = batch.column("source").dictionary_encode()
        index = codes.indices.to_numpy()
        edges = np.flatnonzero(np.diff(index, prepend=-1, append=-1))
        for start, stop in pairwise(edges.tolist()):  # runs of rows of one source: views, not copies
            tokens = ids.values[ids.offsets[start] : ids.offsets[stop]]
            sizes = lengths.values[lengths.offsets[start] : lengths.offsets[stop]].astype(np.int64)
            end = self.info.eos_token_id
            ends = np.cumsum(sizes)
            num_added = 0
            if end is not None and (unended := tokens[ends - 1] != end).any():
                tokens, sizes, num_added = (
                    np.insert(tokens, ends[unended], end),
                    sizes + unended,
                    int(unended.sum()),
                )
            yield codes.dictionary[int(index[start])].as_py(), tokens, sizes, num_added

    def finish(self, shards: list[list[str]], folder: Path) -> list[str]:
        """Write the blend of this split, of its stages, and of all splits that are there."""
        bins = [name for names in shards for name in names if name.endswith(".bin")]
        written = [self._blend(split_folder(self.split), bins, folder)]
        for stage, staged in stage_files(bins, self.info, self.split).items():
            written.append(self._blend(f"stage-{stage}", staged, folder))
        texts = {p.stem: p.read_text().split() for p in files_below(folder, "*.txt")}
        valid = [word for name, words in texts.items() if name.startswith("validation_") for word in words]
        blends = {"train": texts.get("train") or None, "valid": valid or None, "test": None}
        written.append(write_json(folder, "blend.json", blends))
        notes = (
            f"`...` stands for your model's arguments. Tokens are {self.dtype.name}. Prefixes in the blend are relative: start the run in this folder.",
            "The weights are the tokens of each dataset, so one pass over the sum of them is one pass over the set, "
            "repeats included. Set `--train-samples` to that sum divided by `--seq-length`.",
            "Megatron shuffles documents and samples: ratios survive, our order does not. A set of stages has one "
            "blend a stage (`stage-NAME.txt`): train them one after the other with `--data-args-path`.",
            self._ends(folder),
        )
        return [*written, self.write_readme(folder, "Megatron-LM", notes)]

    def _ends(self, folder: Path) -> str:
        """Which documents end with the token that keeps them apart."""
        if self.layout == "blocks":
            return "Rows are token for token those of the set; where a document is cut, nothing keeps its pieces apart."
        if self.info.eos_token_id is None:
            return "The tokenizer names no end-of-text token, so nothing keeps documents apart."
        counts = [json.loads(path.read_text()) for path in files_below(folder, "counts/*.json")]
        documents, added = (sum(c[name] for c in counts) for name in ("documents", "end_tokens_added"))
        return (
            f"Every document here is one piece of the set and ends with token {self.info.eos_token_id}, which alone keeps documents "
            f"apart. {added:,} of {documents:,} are pieces of a cut document and did not: the token was added behind them, so the "
            f"files hold {added:,} tokens more than the set (`counts/`), and each is trained as the end of its piece. "
            "`layout: blocks` adds none."
        )

    def _blend(self, name: str, bins: list[str], folder: Path) -> str:
        """Lines of ``tokens prefix``: Megatron normalises the weights."""
        width = self.dtype.itemsize
        lines = [f"{(folder / b).stat().st_size // width} {b.removesuffix('.bin')}\n" for b in bins]
        return write_text(folder, f"{name}.txt", "".join(lines))

    def keeps(self) -> tuple[str, ...]:
        """Megatron draws samples by the blend and shuffles them."""
        apart = self.layout == "documents" and self.info.eos_token_id is not None
        return ("ratio", "isolation") if apart else ("ratio",)

    def command(self) -> str:
        """The arguments that keep our ratio."""
        seq_length = self.info.max_length or 4096
        return (
            "python CHECKOUT/pretrain_gpt.py --per-split-data-args-path blend.json "
            f"--seq-length {seq_length} --reset-position-ids --reset-attention-mask --eod-mask-loss "
            "--tokenizer-type HuggingFaceTokenizer --tokenizer-model ../tokenizer ..."
        )


def encode_index(lengths: NDArray[np.int64], dtype: np.dtype[Any]) -> bytes:
    """The ``.idx`` of documents of one sequence each; ``lengths`` in tokens ``[num_documents]``."""
    count = len(lengths)
    offsets = np.zeros(count, "<i8")
    np.cumsum(lengths[:-1] * dtype.itemsize, out=offsets[1:])
    return b"".join(
        (
            _MAGIC,
            np.array([1], "<u8").tobytes(),
            bytes([_CODES[dtype.name]]),
            np.array([count, count + 1], "<u8").tobytes(),
            lengths.astype("<i4").tobytes(),
            offsets.tobytes(),
            np.arange(count + 1, dtype="<i8").tobytes(),
        )
    )
