"""Encoding of conversations over the tokenizer engine's own time for the same texts, in one process, by processor time.

    python benchmarks/columns.py [--megabytes 16]

Real conversations (see ``end_to_end.py``) are read and shaped; then ``Encoder.encode`` makes ids and masks of them in
columns, and the same record by record; what is inside the engine is counted apart. ``fit`` makes the records fit that are longer than
2,048 tokens. Printed as JSON: seconds of each.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import end_to_end
import pyarrow as pa

from datamix.core.records import SCHEMAS
from datamix.tokenize import Encoder, EncodeSpec, find_tokenizer, fit
from datamix.tokenize import encoder as encoder_module
from datamix.tokenize.tokenizer import load_tokenizer

MAX_LENGTH = 2048


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=16)
    given = parser.parse_args()
    pa.set_cpu_count(1)
    batches = records(given.megabytes)
    spec = EncodeSpec("sft", find_tokenizer(str(end_to_end.tokenizer()), "."), "assistant")
    result: dict[str, float] = {}
    for name, small_rows in (("columns", 0), ("records", 1 << 60)):
        encoder_module._SMALL_ROWS = small_rows
        load_tokenizer.cache_clear()  # engines remember words
        encoder = Encoder(spec)
        encoder.make_ready()
        encoder.encode(batches[0], "sft")  # proves the engine, analyses the template, loads the kernel
        inside = count_engine(encoder)
        start = time.process_time()
        tokens = [encoder.encode(batch, "sft")[0] for batch in batches]
        result[name] = time.process_time() - start
        result[f"engine for {name}"] = sum(inside)
        if name == "columns":
            start = time.process_time()
            for batch, of_batch in zip(batches, tokens, strict=True):
                long = [row for row, n in enumerate(of_batch.column("length").to_pylist()) if n > MAX_LENGTH]
                if long:
                    fit(encoder, batch.take(pa.array(long)), "sft", MAX_LENGTH, "drop_turns")
            result["fit"] = time.process_time() - start
    print(json.dumps({name: round(seconds, 3) for name, seconds in result.items()}))


def count_engine(encoder: Encoder) -> list[float]:
    """The processor time inside the engine, call by call, from now on."""
    inside: list[float] = []

    def timed(encode: Callable[..., object]) -> Callable[..., object]:
        def call(texts: list[str]) -> object:
            start = time.process_time()
            try:
                return encode(texts)
            finally:
                inside.append(time.process_time() - start)

        return call

    for backend in encoder.plain._fast or encoder.plain._truths:
        backend.encode = timed(backend.encode)  # type: ignore[method-assign,assignment]
    return inside


def records(megabytes: int) -> list[pa.RecordBatch]:
    """Batches of 1,024 records."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "chats.jsonl"
        end_to_end.write_conversations(path, megabytes)
        chats = [json.loads(line)["messages"] for line in path.open(encoding="utf-8")]
    batches = []
    for start in range(0, len(chats), 1024):
        part = chats[start : start + 1024]
        columns = {"slice": [0] * len(part), "record": list(range(len(part))), "messages": part}
        columns |= {name: [None] * len(part) for name in ("tools", "kwargs", "meta")}
        batches.append(pa.RecordBatch.from_pydict(columns, schema=SCHEMAS["sft"]))
    return batches


if __name__ == "__main__":
    main()
