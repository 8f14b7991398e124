"""Small sets: how long a first build, a build with new data, a change of weights and a plan take, whole processes.

    python benchmarks/small.py [--rounds 3]

1,000 real conversations (see ``end_to_end.py``) in two files, the tokenizer of Qwen2.5 (18 MB). ``tokenizer new``: an empty
cache. ``tokenizer known``: the cache has seen the tokenizer with other data. ``other weights``: the set is built. ``plan``: of an empty cache.
``four samples``: the recipes of ``samples/``, one after another, empty caches.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import end_to_end
from end_to_end import ROOT, Contender, run_once

CASES = ("tokenizer new", "tokenizer known", "other weights", "plan", "four samples")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="small-") as name:
        for one in measure(Path(name), given.rounds):
            clock, work = statistics.median(one.seconds), statistics.median(one.work)
            print(f"  {one.name:<20} {clock:6.2f} s  {work:6.2f} s of processor")


def measure(folder: Path, rounds: int) -> list[Contender]:
    """Every case ``rounds`` times, in turns."""
    for number in range(2):
        write_records(folder, number)
    contenders = [Contender(case, command(folder, case), folder / "none" / "out") for case in CASES]
    contenders[0].out.parent.mkdir()
    for _ in range(rounds):
        for one in contenders:
            prepare(folder, one.name)
            run_once(one)
            if one.failed:
                raise SystemExit(f"{one.name}: {one.failed}")
    return contenders


def write_records(folder: Path, number: int) -> None:
    """Recipe and texts ``number``: two files of 500 conversations."""
    path = folder / f"{number}.jsonl"
    end_to_end.write_conversations(path, 2)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for half in (0, 1):
        texts = "".join(lines[1000 * number + 500 * half :][:500])
        (folder / f"{number}-{half}.jsonl").write_text(texts, encoding="utf-8")
    for weight in (2, 3):
        sources = {f"s{h}": {"path": f"{number}-{h}.jsonl", "weight": 1 + h * weight} for h in (0, 1)}
        recipe = {
            "name": "small",
            "kind": "sft",
            "tokenizer": str(end_to_end.tokenizer()),
            "sources": sources,
            "encode": {"max_length": 2048, "pack": "best_fit"},
        }
        (folder / f"{number}-{weight}.json").write_text(json.dumps(recipe), encoding="utf-8")


def command(folder: Path, case: str) -> list[str]:
    """What is timed."""
    if case == "four samples":
        names = ("sft", "pretrain", "preference", "prompt")
        builds = [" ".join(build(folder, ROOT / "samples" / f"{n}.yaml", folder / n)) for n in names]
        return ["sh", "-e", "-c", "\n".join(builds)]
    if case == "plan":
        return [*datamix("plan"), str(folder / "0-2.json"), "--cache", str(folder / "cache")]
    number, weight = {"tokenizer new": (0, 2), "tokenizer known": (1, 2), "other weights": (0, 3)}[case]
    return build(folder, folder / f"{number}-{weight}.json", folder / "out")


def prepare(folder: Path, case: str) -> None:
    """What the case finds."""
    for place in [
        folder / "cache",
        *(folder / n for n in ("out", "sft", "pretrain", "preference", "prompt")),
    ]:
        shutil.rmtree(place, ignore_errors=True)
    if case in ("tokenizer known", "other weights"):
        subprocess.run(build(folder, folder / "0-2.json", folder / "out"), check=True, capture_output=True)


def build(folder: Path, recipe: Path, out: Path) -> list[str]:
    return [*datamix("build"), str(recipe), "-o", str(out), "--cache", str(folder / "cache"), "--overwrite"]


def datamix(name: str) -> list[str]:
    return [sys.executable, "-m", "datamix", name]


if __name__ == "__main__":
    main()
