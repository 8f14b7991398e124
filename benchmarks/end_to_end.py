"""Files in, training set out: ``datamix build`` beside the pipelines that people run today, each in a process of its own.

    python benchmarks/end_to_end.py [sft|pretrain|memory] [--megabytes 64] [--rounds 2]

``sft``: JSONL of real conversations -> rows with masks, packed, in Parquet. Beside it ``datasets.map`` of
``apply_chat_template(return_assistant_tokens_mask=True)`` with a template that marks its answers, TRL's ``pack_dataset`` and
``to_parquet``, with one process and with two. ``pretrain``: JSONL of real documents -> packed blocks, beside datatrove's
tokenizer pipeline and a Megatron-style ``preprocess_data``, two workers each; both peers stop at one stream of tokens, and
are let off the blocks. ``memory``: the peak of a build at 1x and 10x the data.

The texts are the corpora beside the checkout, copied until the size is reached, every copy with one character in forty
changed, so that engines that remember words meet new ones. Times are of whole processes, cold cache, contenders in turns,
and beside them the processor time of all their processes, which says more where others use the machine too;
``engine tokenizers`` is the same build where the fast engine cannot be imported. A peer that is not installed says so:

    python -m venv .venv-peers && .venv-peers/bin/pip install trl==1.16.0 torch==2.13.0 datasets==5.2.0 'datatrove[io]==0.6.0'
    python benchmarks/end_to_end.py --peers .venv-peers/bin/python
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
PEERS = Path(__file__).with_name("end_to_end_peers.py")
SFT = (
    "sft_general/hiyouga__LLaMA-Factory/alpaca_zh_demo.json",
    "sft_general/hiyouga__LLaMA-Factory/alpaca_en_demo.json",
    "sft_domain/shibing624__MedicalGPT/medical_sft_1K_format.jsonl",
    "sft_general/shibing624__MedicalGPT/sharegpt_zh_1K_format.jsonl",
)
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
MAX_LENGTH = 2048
_PR_SET_CHILD_SUBREAPER = 36


@dataclass
class Contender:
    """A command that is timed; ``notes`` are what it said of itself last."""

    name: str
    command: list[str]
    out: Path
    environment: dict[str, str] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    work: list[float] = field(default_factory=list)  # seconds of processor time, of the whole tree
    own_peak: int = 0  # of the process that was started; the rest are its workers
    said: str = ""
    failed: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", default=["sft", "pretrain"], choices=["sft", "pretrain", "memory"])
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peers", default=sys.executable, help="the Python that has trl and torch")
    parser.add_argument("--datatrove", help="the Python that has datatrove; default: that of --peers")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="end_to_end-") as name:
        folder = Path(name)
        if "sft" in given.what:
            sft(folder / "sft", given)
        if "pretrain" in given.what:
            pretrain(folder / "pretrain", given)
        if "memory" in given.what:
            memory(folder / "memory", given.megabytes)


def sft(folder: Path, given: argparse.Namespace) -> None:
    folder.mkdir()
    texts = folder / "sft.jsonl"
    num_records = write_conversations(texts, given.megabytes)
    print(f"sft: {num_records:,} conversations, {texts.stat().st_size / 1e6:.0f} MB", flush=True)
    run(sft_contenders(folder, texts, given.peers), given.rounds)


def sft_contenders(folder: Path, texts: Path, peers: str) -> list[Contender]:
    return [
        *ours(folder, "sft", [texts]),
        *(
            Contender(
                f"datasets.map, num_proc={num_proc}, + TRL packing",
                [
                    peers,
                    str(PEERS),
                    "map",
                    str(texts),
                    str(tokenizer()),
                    str(folder / "peer"),
                    num_proc,
                ],
                folder / "peer",
            )
            for num_proc in ("None", "2")
        ),
    ]


def pretrain(folder: Path, given: argparse.Namespace) -> None:
    folder.mkdir()
    texts, num_records = write_halves(folder, given.megabytes)
    size = sum(path.stat().st_size for path in texts)
    print(f"pretrain: {num_records:,} documents, {size / 1e6:.0f} MB", flush=True)
    run(pretrain_contenders(folder, texts, given.peers, given.datatrove), given.rounds)


def write_halves(folder: Path, megabytes: int) -> tuple[list[Path], int]:
    texts = [folder / "in" / f"{half}.jsonl" for half in (0, 1)]
    texts[0].parent.mkdir(parents=True)
    return texts, sum(write_documents(path, megabytes // 2, seed) for seed, path in enumerate(texts, start=1))


def pretrain_contenders(
    folder: Path, texts: list[Path], peers: str, datatrove: str | None
) -> list[Contender]:
    out = folder / "peer"
    arguments = [str(texts[0].parent), str(tokenizer()), str(out), "2"]
    return [
        *ours(folder, "pretrain", texts),
        Contender("datatrove, 2 workers", [datatrove or peers, str(PEERS), "datatrove", *arguments], out),
        Contender("Megatron-style, 2 workers", [peers, str(PEERS), "megatron", *arguments], out),
    ]


def memory(folder: Path, megabytes: int) -> None:
    """Peak memory of the whole process tree at one size and ten times that: all pages, and those no file backs."""
    folder.mkdir()
    for factor in (1, 10):
        texts = folder / f"{factor}.jsonl"
        num_records = write_documents(texts, factor * megabytes, factor)
        one = ours(folder, "pretrain", [texts])[0]
        run_once(one)
        print(
            f"{factor:>3} x: {num_records:>7,} documents, {texts.stat().st_size / 1e6:6.0f} MB, {one.seconds[0]:.1f} s, peak "
            f"{one.peaks[0] / 1e6:.0f} MB of memory, {one.own_peak / 1e6:.0f} MB of it in the parent",
            flush=True,
        )
        if one.failed:
            print(one.failed)
        texts.unlink()


# --- contenders -----------------------------------------------------------------------------------------------------


def tokenizer() -> Path:
    return DATA / "tokenizers" / "qwen2.5"


def ours(folder: Path, kind: str, texts: list[Path]) -> list[Contender]:
    """The build with each engine: a module that cannot be imported stands before the fast one in the second."""
    recipe = folder / f"{kind}.json"
    value: dict[str, Any] = {
        "name": "bench",
        "kind": kind,
        "tokenizer": str(tokenizer()),
        "chat_template": str(tokenizer() / "chat_template_training.jinja"),
        "sources": {"all": {"path": [str(path) for path in texts]}},
        "encode": {"max_length": MAX_LENGTH, "pack": "best_fit"},
    }
    recipe.write_text(json.dumps(value), encoding="utf-8")
    hidden = folder / "hidden"
    hidden.mkdir(exist_ok=True)
    (hidden / "fastokens.py").write_text("raise ImportError\n", encoding="utf-8")
    out = folder / "out"
    command = [sys.executable, "-m", "datamix", "build", str(recipe), "-o", str(out)]
    command += ["--cache", str(folder / "cache"), "--workers", "2"]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return [
        Contender("datamix build", command, out, {"PYTHONPATH": ":".join(paths)}),
        Contender(
            "datamix build, engine tokenizers",
            command,
            out,
            {"PYTHONPATH": ":".join([str(hidden), *paths])},
        ),
    ]


def run(contenders: list[Contender], rounds: int) -> None:
    for _ in range(rounds):
        for one in contenders:
            if not one.failed:
                run_once(one)
    base = [one for one in contenders if not one.failed]
    best = {one.name: statistics.median(one.seconds) for one in base}
    for one in contenders:
        if one.failed:
            print(f"  {one.name}: {one.failed}")
            continue
        shares = [statistics.median(one.work) / statistics.median(other.work) for other in contenders[:2]]
        ratios = [best[one.name] / best[other.name] for other in contenders[:2]]
        said = (
            ""
            if one in contenders[:2]
            else f"   {ratios[0]:5.1f} x datamix, {ratios[1]:5.1f} x with tokenizers; of work {shares[0]:.1f} x, {shares[1]:.1f} x"
        )
        peak, work = max(one.peaks) / 1e6, statistics.median(one.work)
        print(
            f"  {one.name:<44} {best[one.name]:6.1f} s  {work:6.1f} s of processor  peak {peak:5.0f} MB{said}"
        )
        if one.said:
            print(f"      {one.said}")


def run_once(one: Contender) -> None:
    """One cold run: what an earlier one left is taken away first."""
    for path in (one.out, one.out.with_name("cache")):
        subprocess.run(["rm", "-rf", str(path)], check=True)
    log = one.out.with_name("log")
    before, start = _worked(), time.perf_counter()
    with log.open("w") as stream:
        process = subprocess.Popen(
            one.command, env={**os.environ, **one.environment}, stdout=stream, stderr=stream
        )
        peak = 0
        while True:
            try:
                process.wait(0.5)  # walking the pages of a gigabyte stops the process that holds it
                break
            except subprocess.TimeoutExpired:
                held = {pid: _resident(pid) for pid in _tree(process.pid)}
                peak, one.own_peak = max(peak, sum(held.values())), max(one.own_peak, held[process.pid])
    seconds = time.perf_counter() - start
    work = _worked() - before
    text = log.read_text(encoding="utf-8", errors="replace")
    if process.returncode:
        last = text.strip().splitlines()[-1:] or ["no output"]
        one.failed = f"not installed: {last[0]}" if "ModuleNotFoundError" in text else f"failed: {last[0]}"
        return
    one.seconds.append(seconds)
    one.peaks.append(peak)
    one.work.append(work)
    one.said = "; ".join(re.sub(r"\s+", " ", line) for line in text.splitlines() if " done in " in line)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from _tree(int(child))
    except OSError:
        return


def _worked() -> float:
    """Seconds of processor time of all processes that were started from here and have ended, orphans included."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _resident(pid: int) -> int:
    """Bytes of a process that no file backs; what it shares with others counts in part, so that a tree adds up."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return sum(int(number) * 1024 for number in re.findall(r"Pss_(?:Anon|Shmem):\s+(\d+)", text))


# --- texts ----------------------------------------------------------------------------------------------------------


def write_conversations(path: Path, megabytes: int) -> int:
    """Messages in JSONL: copies of real conversations, each copy edited."""
    rng = random.Random(1)
    talks = [talk for name in SFT for talk in conversations(DATA / name)]
    count = 0
    with path.open("w", encoding="utf-8") as stream:
        while stream.tell() < megabytes * 1e6:
            for talk in talks:
                turns = [{**turn, "content": edited(turn["content"], rng)} for turn in talk]
                stream.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
                count += 1
    return count


def conversations(path: Path) -> Iterator[list[dict[str, str]]]:
    text = path.read_text(encoding="utf-8")
    rows = (
        json.loads(text)
        if path.suffix == ".json"
        else [json.loads(line) for line in text.splitlines() if line]
    )
    for row in rows:
        if "conversations" in row:
            turns = [{"role": ROLES[t["from"]], "content": t["value"]} for t in row["conversations"]]
        else:
            question = "\n".join(filter(None, (row["instruction"], row.get("input"))))
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": row["output"]}]
        if all(turn["content"] for turn in turns) and turns[-1]["role"] == "assistant":
            yield turns


def write_documents(path: Path, megabytes: int, seed: int) -> int:
    """Texts in JSONL: copies of real documents, Chinese and English, each copy edited."""
    rng = random.Random(seed)
    texts = [
        json.loads(line)["text"]
        for name in sorted((DATA / "pretrain").glob("*.jsonl"))
        for line in name.open(encoding="utf-8")
    ]
    rng.shuffle(texts)
    count = written = 0
    with path.open("w", encoding="utf-8") as stream:
        while written < megabytes * 1e6:
            line = json.dumps({"text": edited(texts[count % len(texts)], rng)}, ensure_ascii=False) + "\n"
            stream.write(line)
            written += len(line.encode())
            count += 1
    return count


def edited(text: str, rng: random.Random) -> str:
    """A text in which about one character in forty is another one of it."""
    characters = list(text)
    for _ in range(len(text) // 40):
        characters[int(rng.random() * len(text))] = text[int(rng.random() * len(text))]
    return "".join(characters)


if __name__ == "__main__":
    main()
