"""Training on a GPU: the share of each step that is spent waiting for data.

    python benchmarks/gpu.py [--work FOLDER] [--steps 200] [--batch 8]

A decoder of about 100 million parameters in bf16 (12 layers of 768, tied embeddings) is trained on sequences of 2,048, fed by
the loader from a virtual set, by ``datasets`` (torch format) and, where it is installed, by mosaicml-streaming. Waiting is the
time the training loop stands at ``next(batches)``; the device is synchronised at the end of each step, so that no
step hides behind another. Needs torch with CUDA, transformers and what ``benchmarks/load.py`` names; where there is no GPU the script says
so and measures nothing. Figures in the documentation name the device; where none is named, it was not run.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from load import BATCH, LENGTH, built_blocks, datasets_map, mosaic, opened

WARM_STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="where the set is built, kept between runs")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=BATCH, help="sequences a step, of the loader of datamix")
    options = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        print("not run: torch is not installed here")
        return
    import torch

    if not torch.cuda.is_available():
        print("not run: there is no GPU here")
        return
    with tempfile.TemporaryDirectory() as fallback:
        folder = built_blocks((options.work or Path(fallback)).absolute(), (options.steps + WARM_STEPS) * 20)
        print(
            f"{torch.cuda.get_device_name()}, bf16, batches of [{options.batch}, {LENGTH}], {options.steps} steps"
        )
        for name, batches in loaders(folder, options.batch).items():
            print_waiting(name, batches, options.steps)


def loaders(folder: Path, batch: int) -> dict[str, Callable[[], Iterator[dict[str, Any]]]]:
    """Each from its own form of the same rows; peers take the batch size of ``benchmarks/load.py``."""
    found: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "datamix virtual": lambda: iter(opened("virtual", folder).torch(batch, pin_memory=True)),
        "datamix virtual, 2 workers": lambda: iter(
            opened("virtual", folder).torch(batch, pin_memory=True, num_workers=2)
        ),
        "datasets": lambda: datasets_map(folder),
    }
    if importlib.util.find_spec("streaming") is not None:
        found["mosaicml-streaming"] = lambda: mosaic(folder)
    else:
        print("mosaicml-streaming: not installed")
    return found


def decoder() -> Any:
    """About 100 million parameters, with the vocabulary of the samples' tokenizer."""
    import torch
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=16_384,
        hidden_size=768,
        intermediate_size=2304,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=12,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).to("cuda", torch.bfloat16)
    model.config.use_cache = False
    return model


def print_waiting(name: str, batches: Callable[[], Iterator[dict[str, Any]]], num_steps: int) -> None:
    import torch

    torch.manual_seed(0)
    model = decoder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    stream = batches()
    waits, steps = [], []
    for step in range(num_steps + WARM_STEPS):
        began = time.perf_counter()
        batch = next(stream, None)
        if batch is None or isinstance(batch["input_ids"], list):
            break  # the set, or its whole blocks, are used up
        waited = time.perf_counter() - began
        ids = batch["input_ids"].to("cuda", non_blocking=True)
        labels = batch["labels"].to("cuda", non_blocking=True)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        if step >= WARM_STEPS:
            waits.append(waited)
            steps.append(time.perf_counter() - began)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(
        f"{name:28s} {millions:.0f} M parameters  step {statistics.median(steps) * 1000:7.2f} ms  "
        f"waiting {sum(waits) / sum(steps):7.3%} of the time (median {statistics.median(waits) * 1e6:.0f} us)"
    )


if __name__ == "__main__":
    main()
