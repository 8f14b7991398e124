"""Write the figures of the documentation from ``benchmarks/results.json``, in English and Chinese.

``make bench`` measures and runs it; a test compares the pages with what it gives. A page holds the figures of a benchmark between
``<!-- figures of NAME -->`` and ``<!-- end of figures -->``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results.json"
BLOCK = re.compile(r"(<!-- figures of (\w+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)
EN, ZH = 0, 1
WORDS: dict[str, tuple[str, str]] = {
    "tokenizer new": ("build, tokenizer new to the cache", "构建，缓存中没有这个分词器"),
    "tokenizer known": (
        "build of new data, tokenizer known to the cache",
        "构建新数据，缓存中已有这个分词器",
    ),
    "other weights": ("build with other weights", "改变权重后重新构建"),
    "plan": ("plan, nothing in the cache", "计划，缓存为空"),
    "four samples": ("the four recipes of `samples/`, one after another", "`samples/` 的四个配方，依次构建"),
    "columns": ("plain conversations, in columns", "普通对话，按列"),
    "records": ("the same, record by record", "同样的对话，逐条"),
}
HEADS: dict[str, tuple[str, str]] = {
    "small": (
        "| 1,000 conversations, a tokenizer of 18 MB | seconds | of processor time |",
        "| 1,000 条对话，18 MB 的分词器 | 秒 | 处理器时间 |",
    ),
    "columns": (
        "| ids and masks of conversations | times the engine's own time |",
        "| 对话的 id 和掩码 | 相当于分词引擎自身时间的倍数 |",
    ),
}
SOURCE = (
    "Medians of {rounds} rounds on {date}, {processors} processors shared with other work (load {load}), {versions}.",
    "{date} 测量，{rounds} 轮的中位数，{processors} 个处理器，与其他工作共用（负载 {load}），{versions}。",
)


def figures(name: str, language: int, table: dict[str, Any]) -> str:
    """The table of one benchmark, and where it is from."""
    measured = table[name]
    rows = {row["name"]: row for row in measured["rows"]}
    head = HEADS[name][language]
    lines = [head, "|" + "---|" * (head.count("|") - 1)]
    if name == "columns":
        for row in ("columns", "records"):
            times = rows[row]["processor"] / rows[f"engine for {row}"]["processor"]
            lines.append(f"| {WORDS[row][language]} | {times:.1f} |")
    else:
        lines += [
            f"| {WORDS[r][language]} | {v['clock']:.1f} | {v['processor']:.1f} |" for r, v in rows.items()
        ]
    names = ("tokenizers", "fastokens")
    versions = ", ".join(f"{package} {measured['versions'][package]}" for package in names)
    words = {
        **measured["machine"],
        "rounds": measured["rounds"],
        "date": measured["date"],
        "versions": versions,
    }
    return "\n".join([*lines, "", SOURCE[language].format(**words), ""])


def written(page: Path, table: dict[str, Any]) -> str:
    """A page with its figures."""
    language = ZH if page.name.endswith(".zh.md") else EN
    text = page.read_text(encoding="utf-8")
    return BLOCK.sub(lambda match: match[1] + figures(match[2], language, table) + match[3], text)


def pages() -> list[Path]:
    return [page for page in sorted(HERE.glob("*.md")) if BLOCK.search(page.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    for page in pages():
        page.write_text(written(page, json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
