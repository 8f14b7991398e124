"""What others do, as small as it can be said: run by ``end_to_end.py`` with the Python that has their packages."""

from __future__ import annotations

import json
import multiprocessing
import struct
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

MAX_LENGTH = 2048


def map_and_pack(texts: str, tokenizer: str, out: str, num_proc: str) -> None:
    """``datasets.map`` with assistant masks, TRL's packing, Parquet."""
    import datasets
    from transformers import PreTrainedTokenizerFast
    from trl import pack_dataset

    workers = None if num_proc == "None" else int(num_proc)
    datasets.disable_progress_bars()
    marks = PreTrainedTokenizerFast.from_pretrained(tokenizer)
    template = (Path(tokenizer) / "chat_template_training.jinja").read_text(encoding="utf-8")

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        found = marks.apply_chat_template(
            row["messages"], chat_template=template, return_dict=True, return_assistant_tokens_mask=True
        )
        ids, masks = found["input_ids"], found["assistant_masks"]
        labels = [token if mask else -100 for token, mask in zip(ids, masks, strict=True)]
        return {"input_ids": ids, "labels": labels}

    clock = Clock()
    rows = datasets.load_dataset("json", data_files=texts, split="train", cache_dir=f"{out}/cache")
    clock.lap("read")
    rows = rows.map(encode, remove_columns=["messages"], num_proc=workers)
    clock.lap("encode")
    rows = pack_dataset(rows, MAX_LENGTH, "bfd", {"num_proc": workers})
    clock.lap("pack")
    rows.to_parquet(f"{out}/train.parquet")
    clock.lap("write")


def datatrove(texts: str, tokenizer: str, out: str, num_workers: str) -> None:
    """datatrove's tokenizer pipeline: one stream of tokens a worker."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    steps = [
        JsonlReader(texts),
        DocumentTokenizer(
            output_folder=f"{out}/tokens",
            local_working_dir=f"{out}/local",
            tokenizer_name_or_path=f"{tokenizer}/tokenizer.json",
            eos_token="<|endoftext|>",
            shuffle_documents=False,
        ),
    ]
    LocalPipelineExecutor(
        steps, tasks=int(num_workers), workers=int(num_workers), logging_dir=f"{out}/log"
    ).run()


def megatron(texts: str, tokenizer: str, out: str, num_workers: str) -> None:
    """``preprocess_data`` as Megatron does it: a pool that encodes line by line, the parent writes .bin and .idx."""
    lines = (line for path in sorted(Path(texts).glob("*.jsonl")) for line in path.open(encoding="utf-8"))
    Path(out).mkdir(parents=True)
    sizes = []
    with (
        multiprocessing.Pool(int(num_workers), start_encoder, (tokenizer,)) as pool,
        open(f"{out}/text_document.bin", "wb") as stream,
    ):
        for ids in pool.imap(encode_line, lines, 32):
            tokens = np.array(ids, np.int32)
            stream.write(tokens.tobytes())
            sizes.append(len(tokens))
    pointers = np.concatenate([[0], np.cumsum(sizes)[:-1]]) * 4
    with open(f"{out}/text_document.idx", "wb") as stream:
        stream.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 4, len(sizes), len(sizes) + 1))
        for array, kind in ((sizes, np.int32), (pointers, np.int64), (range(len(sizes) + 1), np.int64)):
            stream.write(np.array(array, kind).tobytes())


ENCODER: list[Any] = []


def start_encoder(tokenizer: str) -> None:
    from tokenizers import Tokenizer

    ENCODER.append(Tokenizer.from_file(f"{tokenizer}/tokenizer.json"))


def encode_line(line: str) -> list[int]:
    ids: list[int] = ENCODER[0].encode(json.loads(line)["text"], add_special_tokens=False).ids
    return [*ids, 151643]


class Clock:
    """Prints how long each part took."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        print(f"{name} done in {now - self._last:.1f} s", flush=True)
        self._last = now


def main(arguments: list[str]) -> None:
    {"map": map_and_pack, "datatrove": datatrove, "megatron": megatron}[arguments[0]](*arguments[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
