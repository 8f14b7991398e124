"""Writing formats: seconds and memory beside copying the files that came out, and beside Megatron's and MDS's own builders.

    python benchmarks/export.py [--tokens 50_000_000] [--formats arrow,mds] [--peers PYTHON]

Packed pretraining rows of 4,096 random tokens (documents of 20 to 2,000) lie in one Arrow file: 200 MB of tokens, 600 MB with
labels and positions. Every measurement is a process of its own that reads that file batch by batch, as an export reads its
rows, and writes one format; then another process copies what was written. They take turns; medians of ``--rounds``.
"of copy" is the copy's time over ours, "by CPU" the same of processor time (for machines that do other work). Memory is the most that was held when a batch was asked for, above what the
process held before. PYTHON is an interpreter with

    pip install torch==2.13.0 megatron-core==0.16.1 mosaicml-streaming==0.13.0 pyarrow==26.0.1

(`make test-formats` leaves one: .venv-formats/bin/python); its builders get the same rows, one document or row at a time.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

LENGTH, VOCABULARY = 4096, 151_665
BATCH_ROWS = 512  # two million tokens, as the builder hands them over
FORMATS = (
    "parquet", "arrow", "safetensors", "npy", "megatron", "mds", "litdata", "datatrove", "olmo-core", "torchtitan",
    "webdataset", "jsonl", "trl", "axolotl", "open-instruct",
)  # fmt: skip
PEERS = {"megatron": "IndexedDatasetBuilder", "mds": "MDSWriter"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=50_000_000)
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--peers", type=Path, default=Path(".venv-formats/bin/python"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, metavar=("WHAT", "ROWS", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        what, rows, folder = options.one
        print(json.dumps(measure(what, Path(rows), Path(folder))))
        return
    with tempfile.TemporaryDirectory() as home:
        rows = Path(home) / "rows.arrow"
        make_rows(rows, options.tokens)
        print(
            f"{options.tokens:,} tokens ({options.tokens * 4 / 1e6:.0f} MB of ids), {LENGTH} a row, one process"
        )
        print(f"{'':24s}{'s':>8s}{'MB out':>9s}{'MB/s':>8s}{'of copy':>9s}{'by CPU':>8s}{'peak MB':>9s}")
        for name in options.formats.split(","):
            compare(name, rows, options)


def compare(name: str, rows: Path, options: argparse.Namespace) -> None:
    """One line for a format, and one for its peer."""
    whats = {name: Path(sys.executable)} | ({f"peer:{name}": options.peers} if name in PEERS else {})
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for what, python in whats.items():
            if not python.exists():
                continue
            with tempfile.TemporaryDirectory(dir=rows.parent) as folder:
                found.setdefault(what, []).append(child(python, what, rows, Path(folder) / "out"))
                if what == name:
                    found.setdefault("copy", []).append(
                        child(Path(sys.executable), "copy", Path(folder) / "out", Path(folder) / "copy")
                    )
    ours = median(found[name], "seconds")
    copied, megabytes = median(found["copy"], "seconds"), found[name][0]["bytes"] / 1e6
    peak = median(found[name], "peak") / 1e6
    by_cpu = median(found["copy"], "cpu") / median(found[name], "cpu")
    line = f"{name:24s}{ours:8.2f}{megabytes:9.0f}{megabytes / ours:8.0f}{copied / ours:9.2f}{by_cpu:8.2f}{peak:9.0f}"
    print(line, flush=True)
    if f"peer:{name}" in found:
        theirs = median(found[f"peer:{name}"], "seconds")
        worked = median(found[f"peer:{name}"], "cpu") / median(found[name], "cpu")
        print(
            f"  {PEERS[name]:22s}{theirs:8.2f}{theirs / ours:9.1f}x our time, {worked:.1f}x by CPU",
            flush=True,
        )
    elif name in PEERS:
        print(f"  {PEERS[name]:22s}not installed ({options.peers})")


def median(found: list[dict[str, float]], key: str) -> float:
    return statistics.median(one[key] for one in found)


def child(python: Path, what: str, rows: Path, folder: Path) -> dict[str, float]:
    words = [str(python), __file__, "--one", what, str(rows), str(folder)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(what: str, rows: Path, folder: Path) -> dict[str, float]:
    """Seconds, bytes and memory of one run; what is imported and compiled once is not counted."""
    run = {"copy": copy, "peer:megatron": peer_megatron, "peer:mds": peer_mds}.get(what)
    if run is None:
        _, sink = opened(what)
        few = next(batches(rows)).slice(0, 4)
        sink.finish([sink.write([few], 0, folder / "warm")], folder / "warm")
        shutil.rmtree(folder / "warm")
    elif what != "copy":
        run(None, folder / "warm")
        shutil.rmtree(folder / "warm", ignore_errors=True)
    touch(rows)
    Memory.peak, before = 0, Memory.now()
    start, worked = time.perf_counter(), time.process_time()
    if run is None:
        sink.finish([sink.write(batches(rows), 0, folder)], folder)
    else:
        run(rows, folder)
    seconds, cpu = time.perf_counter() - start, time.process_time() - worked
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"seconds": seconds, "cpu": cpu, "bytes": size, "peak": Memory.peak - before}


def touch(rows: Path) -> None:
    """Hold as much memory as can be written, and free it: a virtual machine pays dearly for pages it never had."""
    files = [rows] if rows.is_file() else [path for path in rows.rglob("*") if path.is_file()]
    np.ones(sum(path.stat().st_size for path in files) * 5 // 4, np.uint8)


class Memory:
    """Anonymous memory of this process, in bytes: what is mapped from files is not counted."""

    peak = 0

    @staticmethod
    def now() -> int:
        words = Path("/proc/self/status").read_text().split()
        return int(words[words.index("RssAnon:") + 1]) * 1024

    @classmethod
    def note(cls) -> None:
        cls.peak = max(cls.peak, cls.now())


def opened(name: str) -> tuple[Any, Any]:
    from datamix.exporters import SetInfo, open_sink

    info = SetInfo(
        name="speed", kind="pretrain", packed=True, max_length=LENGTH, vocab_size=VOCABULARY, eos_token_id=2,
        pad_token_id=0, sources=("general", "medical"), stages=("train",), tokenizer_folder="tokenizer",
        shares=(("general", 0.75), ("medical", 0.25)),
    )  # fmt: skip
    return info, open_sink(name, (), info, "train")


def batches(path: Path) -> Iterator[pa.RecordBatch]:
    with pa.memory_map(str(path)) as raw, pa.ipc.open_stream(raw) as reader:
        for batch in reader:
            yield batch
            Memory.note()


def make_rows(path: Path, num_tokens: int) -> None:
    """Full rows of documents that end in token 2; three rows of four from ``general``."""
    info, _ = opened("parquet")
    generator = np.random.Generator(np.random.PCG64(0))
    with pa.OSFile(str(path), "wb") as raw, pa.ipc.new_stream(raw, info.schema) as writer:
        for first in range(0, num_tokens // LENGTH, BATCH_ROWS):
            writer.write_batch(rows_of(generator, first, min(BATCH_ROWS, num_tokens // LENGTH - first), info))


def rows_of(generator: np.random.Generator, first: int, num_rows: int, info: Any) -> pa.RecordBatch:
    lengths = [documents(generator) for _ in range(num_rows)]
    counts, flat = np.array([len(row) for row in lengths]), np.concatenate(lengths)
    ends = np.cumsum(flat)
    ids = generator.integers(3, VOCABULARY, ends[-1], dtype=np.int32)
    ids[ends - 1] = 2
    labels = ids.copy()
    labels[ends - flat] = -100
    positions = np.arange(ends[-1]) - np.repeat(ends - flat, flat)
    pieces = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    tokens = pa.array((np.arange(num_rows + 1) * LENGTH).astype(np.int32))
    numbers = (np.arange(len(flat)) + first * 16).astype(np.int64)
    record = pa.StructArray.from_arrays(
        [np.zeros(len(flat), np.int32), numbers, np.zeros(len(flat), np.int32), flat],
        fields=list(info.schema.field("records").type.value_type),
    )
    columns = {
        "source": pa.array(["medical" if (first + i) % 4 == 3 else "general" for i in range(num_rows)]),
        "stage": pa.array(["train"] * num_rows),
        "records": pa.ListArray.from_arrays(pieces, record),
        "input_ids": pa.ListArray.from_arrays(tokens, ids),
        "labels": pa.ListArray.from_arrays(tokens, labels),
        "position_ids": pa.ListArray.from_arrays(tokens, positions.astype(np.int32)),
        "seq_lengths": pa.ListArray.from_arrays(pieces, flat),
    }
    return pa.RecordBatch.from_arrays([columns[n] for n in info.schema.names], schema=info.schema)


def documents(generator: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Lengths of the documents of a full row, in tokens."""
    drawn = np.minimum(20 + generator.exponential(500, LENGTH // 20), 2000).astype(np.int32)
    row = drawn[: int(np.searchsorted(np.cumsum(drawn), LENGTH)) + 1].copy()
    row[-1] -= row.sum() - LENGTH
    return row


def copy(rows: Path | None, folder: Path) -> None:
    assert rows is not None
    shutil.copytree(rows, folder, copy_function=shutil.copyfile)


def peer_megatron(rows: Path | None, folder: Path) -> None:
    """One document at a time into a builder a source, as its preprocessing does."""
    import torch
    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    folder.mkdir(parents=True, exist_ok=True)
    dtype = DType.optimal_dtype(VOCABULARY)
    names = ("general", "medical")
    builders = {s: IndexedDatasetBuilder(str(folder / f"{s}.bin"), dtype=dtype) for s in names}
    for batch in batches(rows) if rows else ():
        values = batch.column("input_ids").values.to_numpy()
        lengths, sources = batch.column("seq_lengths").to_pylist(), batch.column("source").to_pylist()
        start = 0
        for source, row in zip(sources, lengths, strict=True):
            for length in row:
                builders[source].add_document(
                    torch.from_numpy(values[start : start + length].copy()), [length]
                )
                start += length
    for source, builder in builders.items():
        builder.finalize(str(folder / f"{source}.idx"))


def peer_mds(rows: Path | None, folder: Path) -> None:
    """One row at a time with the columns that we write."""
    without_torchvision()
    from streaming import MDSWriter

    lists = ("input_ids", "labels", "position_ids", "seq_lengths")
    columns = dict.fromkeys(lists, "ndarray:int32") | {"source": "str", "stage": "str", "records": "json"}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for batch in batches(rows) if rows else ():
            words = {name: batch.column(name).to_pylist() for name in ("source", "stage", "records")}
            arrays = {name: batch.column(name) for name in lists}
            for i in range(len(batch)):
                row = {name: column[i].values.to_numpy() for name, column in arrays.items()}
                writer.write(row | {name: column[i] for name, column in words.items()})


def without_torchvision() -> None:
    """Streaming imports it for images alone, and its wheels match CUDA builds of torch only."""
    names = {"torchvision": "", "torchvision.datasets": "VisionDataset", "torchvision.transforms": "",
             "torchvision.transforms.functional": "to_tensor"}  # fmt: skip
    import transformers  # noqa: F401  looks for torchvision when it is first imported

    for name, wanted in names.items():
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        if wanted:
            setattr(module, wanted, type(wanted, (), {}))
        sys.modules[name] = module


if __name__ == "__main__":
    main()
