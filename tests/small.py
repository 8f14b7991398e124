"""A small training set to build in tests: two sources, general and medical, with the samples' tokenizer."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from datamix.pipeline.progress import Screen

ROOT = Path(__file__).parent.parent
TOKENIZER = ROOT / "samples" / "tokenizer"

GENERAL = [
    "今天天气怎么样",
    "How do I boil an egg",
    "写一首关于秋天的诗",
    "Explain recursion",
    "推荐三本历史书",
    "What is inflation",
]
MEDICAL = [
    "感冒了要吃药吗",
    "What lowers a fever",
    "高血压患者的饮食",
    "How much sleep is healthy",
    "过敏怎么办",
]


def alpaca(questions: list[str], count: int) -> list[dict[str, Any]]:
    """``count`` different records of the alpaca format, Chinese and English in turn."""
    records = []
    for i in range(count):
        question = f"{questions[i % len(questions)]}？ ({i})"
        words = " ".join(hashlib.sha256(f"{question}{k}".encode()).hexdigest()[:6] for k in range(3 + i % 17))
        records.append({"instruction": question, "input": "", "output": f"回答 {i}: {words}。"})
    return records


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe(folder: Path, **changes: Any) -> Path:
    """Two sources of 300 and 200 records, and a recipe that packs them 70 to 30; ``changes`` replace top-level keys."""
    shutil.copytree(TOKENIZER, folder / "tokenizer", dirs_exist_ok=True)
    write_jsonl(folder / "general.jsonl", alpaca(GENERAL, 300))
    write_jsonl(folder / "medical.jsonl", alpaca(MEDICAL, 200))
    value: dict[str, Any] = {
        "name": "small",
        "kind": "sft",
        "tokenizer": "tokenizer",
        "sources": {
            "general": {"path": "general.jsonl", "weight": 0.7},
            "medical": {"path": "medical.jsonl", "weight": 0.3, "max_epochs": 2},
        },
        "clean": [{"normalize": {"unicode": "NFC"}}],
        "dedupe": {"exact": True, "near": {"threshold": 0.8}},
        "validation": {"share": 0.05},
        "encode": {"max_length": 256, "pack": "best_fit"},
        "write": ["parquet", "jsonl"],
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(
        json.dumps({k: v for k, v in value.items() if v is not None}, ensure_ascii=False), encoding="utf-8"
    )
    return path


def datamix(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "datamix", *map(str, arguments)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, **environment},
        timeout=300,
        check=False,
    )


def fingerprint(out: Path) -> dict[str, str]:
    """sha256 of every file of a set."""
    return {
        p.relative_to(out).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.rglob("*"))
        if p.is_file()
    }


class Lines(Screen):
    """A screen that remembers the lines it was given."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def tree_digest(out: Path) -> str:
    """Sixteen hex digits for all files of a set, names included."""
    return hashlib.sha256(json.dumps(fingerprint(out)).encode()).hexdigest()[:16]
