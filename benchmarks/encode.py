"""Encoding: Arrow text to ids beside the raw tokenizer, and conversations with masks beside ``datasets.map``.

    python benchmarks/encode.py [--data ../shared/data] [--megabytes 1] [--rounds 4]

Every round and every contender reads text that none has seen in this process (engines remember words). Documents:
``Encoder.encode`` (text column -> ListArray<int32>, control literals checked) over the time of
``encode_batch_fast`` alone, with each engine. Conversations: ``Encoder.encode`` (Arrow messages -> ids and masks) beside
``datasets.map`` of ``apply_chat_template(return_assistant_tokens_mask=True)`` on the same records with a template that marks
its answers. Printed: medians of ratios, so that a busy machine harms both alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from datamix.core.records import SCHEMAS
from datamix.tokenize import Encoder, EncodeSpec, find_tokenizer
from datamix.tokenize.tokenizer import PlainEncoder, TokenizersBackend

ROLES = {"human": "user", "gpt": "assistant", "system": "system", "observation": "tool"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--megabytes", type=float, default=1, help="of text a round and contender")
    parser.add_argument("--rounds", type=int, default=4)
    given = parser.parse_args()
    tokenizer = given.data / "tokenizers" / "qwen2.5"
    for language, name in (("English", "en_python_peps.jsonl"), ("Chinese", "zh_pingcap_docs.jsonl")):
        documents(language, given.data / "pretrain" / name, tokenizer, given)
    conversations(given.data, tokenizer, given.rounds)


def documents(language: str, path: Path, tokenizer: Path, given: argparse.Namespace) -> None:
    """Ratios of text -> ListArray to the raw tokenizer."""
    rounds = _parts(path, int(given.megabytes * 1e6), 3 * given.rounds + 1)
    fast, slow = _encoder(tokenizer, "pretrain"), _without_fast(_encoder(tokenizer, "pretrain"))
    proof = _timed(lambda one: fast.encode(one, "text"), _texts(rounds.pop()))
    raw = TokenizersBackend((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))._tokenizer
    times: dict[str, list[float]] = {"raw": [], "tokenizers": [], fast.engine: []}
    for at in range(0, len(rounds) - 2, 3):
        size = [sum(len(text.encode()) for text in part) for part in rounds[at : at + 3]]
        times["raw"].append(
            _timed(lambda part: raw.encode_batch_fast(part, add_special_tokens=False), rounds[at]) / size[0]
        )
        times["tokenizers"].append(
            _timed(lambda one: slow.encode(one, "text"), _texts(rounds[at + 1])) / size[1]
        )
        if fast.engine != "tokenizers":
            times[fast.engine].append(
                _timed(lambda one: fast.encode(one, "text"), _texts(rounds[at + 2])) / size[2]
            )
    base = statistics.median(times.pop("raw"))
    print(
        f"{language}: raw encode_batch_fast {1e-6 / base:.1f} MB/s; the engine's check at first use, before: {proof:.2f} s"
    )
    for engine, some in times.items():
        print(f"  text column -> ListArray, {engine}: {statistics.median(some) / base:.3f} x its time")


def conversations(data: Path, tokenizer: Path, num_rounds: int) -> None:
    """How many times faster than datasets.map conversations get ids and masks."""
    names = (
        "sft_general/shibing624__MedicalGPT/sharegpt_zh_1K_format.jsonl",
        "sft_domain/shibing624__MedicalGPT/medical_sft_1K_format.jsonl",
    )
    lines = [line for name in names for line in (data / name).read_bytes().split(b"\n") if line]
    talks = [
        [
            {"role": ROLES[turn["from"]], "content": turn["value"]}
            for turn in json.loads(line)["conversations"]
        ]
        for line in lines
    ]
    fast, slow = _encoder(tokenizer, "sft"), _without_fast(_encoder(tokenizer, "sft"))
    warm = _messages([[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]])
    for encoder in (fast, slow):
        encoder.encode(warm, "sft")
    share = len(talks) // num_rounds
    ratios: dict[str, list[float]] = {"tokenizers": [], fast.engine: []}
    for at in range(num_rounds):
        part = talks[at * share : (at + 1) * share]
        mapped = _timed(_map_with_datasets(tokenizer), part)
        batch = _messages(part)
        ratios["tokenizers"].append(mapped / _timed(lambda one: slow.encode(one, "sft"), batch))
        if fast.engine != "tokenizers":
            ratios[fast.engine].append(mapped / _timed(lambda one: fast.encode(one, "sft"), batch))
    for engine, some in ratios.items():
        print(
            f"conversations, {engine}: {statistics.median(some):.1f} x as fast as datasets.map with assistant masks"
        )


def _map_with_datasets(tokenizer: Path) -> Callable[[list[Any]], Any]:
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    reference = PreTrainedTokenizerFast.from_pretrained(str(tokenizer))
    template = (tokenizer / "chat_template_training.jinja").read_text(encoding="utf-8")

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        found = reference.apply_chat_template(
            row["messages"], chat_template=template, return_dict=True, return_assistant_tokens_mask=True
        )
        return {"input_ids": found["input_ids"], "assistant_masks": found["assistant_masks"]}

    def run(talks: list[Any]) -> Any:
        return datasets.Dataset.from_dict({"messages": talks}).map(encode, load_from_cache_file=False)

    return run


def _encoder(tokenizer: Path, kind: str) -> Encoder:
    return Encoder(EncodeSpec(kind, find_tokenizer(str(tokenizer), "."), "assistant"))  # type: ignore[arg-type]


def _without_fast(encoder: Encoder) -> Encoder:
    """The encoder with an engine of its own, which is never the fast one."""
    spec = json.loads((Path(encoder.spec.tokenizer.folder) / "tokenizer.json").read_bytes())
    plain = PlainEncoder(spec, encoder.control)
    plain._fast = []
    encoder.plain = encoder._documents._plain = plain
    return encoder


def _parts(path: Path, size: int, num_parts: int) -> list[list[str]]:
    """Documents in parts of ``size`` bytes, as many as the file gives up to ``num_parts``."""
    parts: list[list[str]] = [[]]
    filled = 0
    for line in path.read_bytes().split(b"\n"):
        if line:
            text = json.loads(line)["text"]
            parts[-1].append(text)
            filled += len(text.encode())
        if filled >= size:
            if len(parts) == num_parts:
                return parts
            parts.append([])
            filled = 0
    return parts[:-1]


def _texts(part: list[str]) -> pa.RecordBatch:
    columns = {"slice": [0] * len(part), "record": range(len(part)), "text": part, "meta": [None] * len(part)}
    return pa.RecordBatch.from_pydict(columns, schema=SCHEMAS["text"])


def _messages(talks: list[list[dict[str, str]]]) -> pa.RecordBatch:
    nulls = [None] * len(talks)
    columns = {
        "slice": [0] * len(talks),
        "record": range(len(talks)),
        "messages": talks,
        "tools": nulls,
        "kwargs": nulls,
        "meta": nulls,
    }
    return pa.RecordBatch.from_pydict(columns, schema=SCHEMAS["sft"])


def _timed(call: Callable[[Any], Any], argument: Any) -> float:
    start = time.perf_counter()
    call(argument)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
