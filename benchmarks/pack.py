"""Packing: sequences a second and how full the rows are, beside the kernels of the trainers.

    python benchmarks/pack.py [--data ../shared/data] [--axolotl PATH/multipack.py] [--sizes 50000,500000,5000000]

The lengths are real: the corpora under ``--data``, tokenized with the tokenizer there, drawn with replacement up to each
size, records longer than a row split as in a pretrain build. Peers get the same lengths: Axolotl's ``pack_group`` in
groups of 10,000 sorted by falling length (its sampler takes 100,000 unsorted, which is slower and fills less; its file
alone is compiled, so that no torch is needed), LLaMA-Factory's ``greedy_knapsack`` per 1,000 as it runs there.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix.tokenize import pack

MAX_LENGTH = 8192
AXOLOTL_GROUP, AXOLOTL_BIN = 10_000, 200  # sequences a group; at most so many in a row
LLAMA_FACTORY_GROUP = 1000
Lengths = NDArray[np.int32]
Packer = Callable[[Lengths], int]  # number of rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--axolotl", type=Path, help="axolotl/utils/samplers/multipack.py")
    parser.add_argument("--sizes", default="50000,500000,5000000")
    options = parser.parse_args()
    real = real_lengths(options.data)
    print_real(real)
    pieces = pack.split_long(real, MAX_LENGTH)[2]
    packers = {"datamix best_fit": ours, **peers(options.axolotl)}
    print(
        f"\nrows of {MAX_LENGTH:,} tokens, mean {pieces.mean():.0f} tokens a sequence: million sequences/s, fill"
    )
    for size in map(int, options.sizes.split(",")):
        lengths = np.random.default_rng(0).choice(pieces, size)
        for name, packer in packers.items():
            packer(lengths[:1000])  # compiles
            seconds, num_rows = best(packer, lengths)
            fill = lengths.sum(dtype=np.int64) / (num_rows * MAX_LENGTH)
            print(f"{size:>10,}  {name:34s} {size / seconds / 1e6:7.2f}  {fill:.5f}")
    for name in missing(options.axolotl):
        print(f"{'':10s}  {name:34s} not installed")


def best(packer: Packer, lengths: Lengths) -> tuple[float, int]:
    seconds, num_rows = np.inf, 0
    for _ in range(3):
        start = time.perf_counter()
        num_rows = packer(lengths)
        seconds = min(seconds, time.perf_counter() - start)
    return seconds, num_rows


def print_real(lengths: Lengths) -> None:
    print(
        f"{len(lengths):,} real records of {lengths.mean():.0f} tokens (median {np.median(lengths):.0f}, longest {lengths.max():,})"
    )
    for max_length in (2048, 4096, 8192):
        record, start, length = pack.split_long(lengths, max_length)
        bins = pack.best_fit(record, start, length, max_length)
        fill = length.sum(dtype=np.int64) / (bins.num_rows * max_length)
        print(
            f"  best_fit at {max_length:,}: {bins.num_rows:,} rows, fill {fill:.5f}, {len(length) - len(lengths):,} cuts"
        )


def real_lengths(folder: Path) -> Lengths:
    """Tokens of every document and every alpaca or sharegpt record under ``folder``."""
    if not folder.is_dir():
        raise SystemExit(f"no corpora at {folder}: give a folder with --data")
    tokenizers = importlib.import_module("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizers" / "qwen2.5" / "tokenizer.json"))
    texts = list(real_texts(folder))
    return np.array([max(1, len(e.ids)) for e in tokenizer.encode_batch_fast(texts)], np.int32)


def real_texts(folder: Path) -> Iterator[str]:
    for path in sorted((folder / "pretrain").glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            yield from (json.loads(line)["text"] for line in lines)
    for path in sorted((folder / "sft_general").glob("*/alpaca_*_demo.json")):
        for row in json.loads(path.read_text(encoding="utf-8")):
            yield f"{row['instruction']}\n{row['input']}\n{row['output']}"
    for path in sorted((folder / "sft_general").glob("*/sharegpt_*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield "\n".join(turn["value"] for turn in json.loads(line)["conversations"])


def ours(lengths: Lengths) -> int:
    return pack.best_fit(
        np.arange(len(lengths)), np.zeros(len(lengths), np.int32), lengths, MAX_LENGTH
    ).num_rows


def peers(axolotl: Path | None) -> dict[str, Packer]:
    found: dict[str, Packer] = {}
    source = axolotl or module_file("axolotl.utils.samplers.multipack")
    if source is not None:
        pack_group = compiled(source, "pack_group")
        found["axolotl pack_group"] = lambda lengths: with_axolotl(pack_group, lengths)
    knapsack = module_file("llamafactory.data.processor.processor_utils")
    if knapsack is not None:
        module = importlib.import_module("llamafactory.data.processor.processor_utils")
        found["LLaMA-Factory greedy_knapsack"] = lambda lengths: with_llama_factory(
            module.greedy_knapsack, lengths
        )
    return found


def missing(axolotl: Path | None) -> list[str]:
    names = {
        "axolotl.utils.samplers.multipack": "axolotl pack_group",
        "llamafactory.data": "LLaMA-Factory greedy_knapsack",
    }
    return [
        label
        for module, label in names.items()
        if module_file(module) is None and not ("axolotl" in module and axolotl)
    ]


def module_file(name: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None


def compiled(source: Path, function: str) -> Any:
    """One numba function of a file, without the imports of the rest of it."""
    numba = importlib.import_module("numba")
    tree = ast.parse(source.read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    scope: dict[str, Any] = {"numba": numba, "np": np}
    exec(compile(ast.Module([node], []), str(source), "exec"), scope)
    return scope[function]


def with_axolotl(pack_group: Any, lengths: Lengths) -> int:
    num_rows = 0
    for first in range(0, len(lengths), AXOLOTL_GROUP):
        group = np.sort(lengths[first : first + AXOLOTL_GROUP])[::-1].copy()
        num_rows += len(pack_group(group, first, MAX_LENGTH, len(group), AXOLOTL_BIN, True))
    return num_rows


def with_llama_factory(greedy_knapsack: Any, lengths: Lengths) -> int:
    groups = range(0, len(lengths), LLAMA_FACTORY_GROUP)
    return sum(
        len(greedy_knapsack(lengths[a : a + LLAMA_FACTORY_GROUP].tolist(), MAX_LENGTH)) for a in groups
    )


if __name__ == "__main__":
    main()
