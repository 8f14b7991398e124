"""Reweighing: a built set with other weights, as a virtual set, without a token read.

    python benchmarks/reweigh.py [--work FOLDER] [--documents 250000] [--rounds 3]

Generates text (about 1,450 tokens a document, so that the default is about 1 GB of tokens), builds a set of three sources from it
once, and then builds it again with other weights and ``write: []`` in fresh processes. Tokens are counted as read when a
process maps a file of encoded records: ``read`` is what the kernel read or faulted in of them (/proc/self/smaps).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from load import ROOT, texts

WEIGHTS = ((0.5, 0.3, 0.2), (0.6, 0.3, 0.1), (0.2, 0.3, 0.5), (0.4, 0.4, 0.2))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="where the set is built, kept between runs")
    parser.add_argument("--documents", type=int, default=180_000)
    parser.add_argument("--rounds", type=int, default=3, choices=range(1, len(WEIGHTS)))
    parser.add_argument("--once", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.once is not None:
        print(json.dumps(reweigh(options.work, options.once)))
        return
    with tempfile.TemporaryDirectory() as fallback:
        work = (options.work or Path(fallback)).absolute()
        tokens = first_build(work, options.documents)
        print(f"{options.documents:,} documents, {tokens * 4 / 1e9:.2f} GB of tokens in the cache")
        runs = [run(work, number) for number in range(1, options.rounds + 1)]
        for number, found in enumerate(runs, 1):
            print(
                f"weights {WEIGHTS[number]}: {found['seconds']:.2f} s, {found['token_bytes']:,} bytes of tokens read"
            )
        print(f"median {statistics.median(r['seconds'] for r in runs):.2f} s (goal: within 3 s for 1 GB)")


def recipe(work: Path, weights: tuple[float, ...]) -> dict[str, Any]:
    sources = {
        f"source_{i}": {"path": str(work / f"reweigh-{i}.jsonl"), "weight": weight}
        for i, weight in enumerate(weights)
    }
    tokenizer = str(ROOT / "samples" / "tokenizer")
    encode = {"max_length": 2048, "pack": "best_fit"}
    return {
        "name": "reweigh",
        "kind": "pretrain",
        "tokenizer": tokenizer,
        "sources": sources,
        "encode": encode,
    }


def first_build(work: Path, num: int) -> int:
    """Generate the text where it is missing, and prepare it; returns the tokens."""
    work.mkdir(parents=True, exist_ok=True)
    for number in range(3):
        path = work / f"reweigh-{number}.jsonl"
        if not path.exists():
            with path.open("w", encoding="utf-8") as stream:
                stream.writelines(json.dumps({"text": t}) + "\n" for t in texts(num // 3, 400, number))
    manifest = build(work, WEIGHTS[0], "reweigh-0")
    return sum(int(s["available"]["tokens"]) for s in manifest["sources"].values())


def build(work: Path, weights: tuple[float, ...], name: str) -> dict[str, Any]:
    import datamix

    made = datamix.Recipe.of({**recipe(work, weights), "write": []}, work)
    return datamix.build(made, work / name, cache=work / ".datamix", overwrite=True)


def run(work: Path, number: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--work", str(work), "--once", str(number)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def reweigh(work: Path, number: int) -> dict[str, Any]:
    began = time.perf_counter()
    build(work, WEIGHTS[number], f"reweigh-{number}-{time.time_ns()}")
    return {"seconds": time.perf_counter() - began, "token_bytes": token_bytes()}


def token_bytes() -> int:
    """Bytes of mapped files of tokens that are in this process's memory."""
    total, counted = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        parts = line.split()
        if "-" in parts[0] and not parts[0].endswith(":"):
            counted = parts[-1].endswith(("/tokens.arrow", "/fitted.arrow"))
        elif counted and parts[0] == "Rss:":
            total += int(parts[1]) * 1024
    return total


if __name__ == "__main__":
    main()
