"""Peak memory of commands at 1, 4 and 16 times the same amount of data: whether it grows with the data.

    python benchmarks/memory.py [--megabytes 64] [--times 1,4,16] [--workers 2] [--results memory.json] [--plot docs/memory.svg]

Chats of 200 to 2,000 characters (20,000 words of chance, one in twenty a copy with small changes) are checked, converted, deduplicated, built
into a set with near duplicates removed, exported and verified, each command a process tree of its own. Ten times a second the proportional set
size of its processes is added up (a page that several share counts once); the peak is printed, with the part of it that is no page of a file: pages of mapped files are given
back when others need the memory. A peak shorter than a tenth of a second may be missed. Results are saved after each command, and a
stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
COMMANDS = ("check", "convert", "dedupe", "build", "export", "verify")
TITLES = {
    ".svg": "peak of all processes in MB, over MB of input; dashed: with pages of mapped files",
    ".zh.svg": "所有进程的内存峰值（MB），横轴为输入的 MB；虚线：加上映射文件的页",
}
COLORS = ("#4269d0", "#efb118", "#ff725c", "#3ca951", "#a463f2", "#6cc5b0")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--times", default="1,4,16")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--results", type=Path, default=Path("memory.json"))
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    known: dict[str, Any] = json.loads(options.results.read_text()) if options.results.exists() else {}
    print(f"{'':10s}{'input MB':>10s}{'peak MB':>10s}{'no file':>10s}{'seconds':>10s}")
    for times in map(int, options.times.split(",")):
        missing = [name for name in COMMANDS if f"{name} {times}" not in known]
        with tempfile.TemporaryDirectory(prefix="datamix-memory-") as home:
            if missing:
                make_inputs(Path(home), times * options.megabytes)
            for name in COMMANDS if missing else ():
                found = measured(command(name, options.workers), Path(home))
                known[f"{name} {times}"] = {"name": name, "megabytes": times * options.megabytes, **found}
                options.results.write_text(json.dumps(known, indent=1))
    for line in known.values():
        print(
            f"{line['name']:10s}{line['megabytes']:10,}{line['peak']:10,}{line['anonymous']:10,}{line['seconds']:10.0f}"
        )
    if options.plot:
        for suffix, title in TITLES.items():
            text = plot(list(known.values()), title)
            options.plot.with_suffix(suffix).write_text(text, encoding="utf-8")


def make_inputs(home: Path, megabytes: int) -> None:
    """``chat.jsonl`` of so many MB, and a recipe."""
    random = np.random.default_rng(1)
    letters = np.array(list("abcdefghijklmnoprstuvw"))
    words = ["".join(random.choice(letters, size)) for size in random.integers(2, 9, 15_000)]
    words += [
        "".join(map(chr, random.integers(0x4E00, 0x8000, size))) for size in random.integers(1, 4, 5_000)
    ]
    with (home / "chat.jsonl").open("w", encoding="utf-8") as stream:
        while stream.tell() < megabytes << 20:
            sizes = random.integers(35, 350, 1000)
            chosen = (random.zipf(1.2, int(sizes.sum())) - 1) % len(words)
            before: list[str] = []
            for end, size in zip(np.cumsum(sizes).tolist(), sizes.tolist(), strict=True):
                text = [words[i] for i in chosen[end - size : end].tolist()]
                if before and end % 20 == 0:
                    text = [*before[:-1], text[0]]
                before = text
                turns = [" ".join(text[: size // 3]), " ".join(text[size // 3 :])]
                roles = ("user", "assistant")
                messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)]
                stream.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    shutil.copytree(ROOT / "samples/tokenizer", home / "tokenizer")
    recipe = {
        "name": "memory",
        "kind": "sft",
        "tokenizer": "tokenizer",
        "sources": {"chat": {"path": "chat.jsonl"}},
        "dedupe": {"exact": True, "near": {"threshold": 0.8}},
        "encode": {"max_length": 2048, "pack": "best_fit"},
    }
    (home / "recipe.yaml").write_text(json.dumps(recipe))


def command(name: str, num_workers: int) -> list[str]:
    workers = ["--workers", str(num_workers)]
    return {
        "check": ["check", "chat.jsonl", "--as", "sft"],
        "convert": ["convert", "chat.jsonl", "converted.jsonl", "--to", "sharegpt"],
        "dedupe": ["dedupe", "chat.jsonl", "-o", "unique.jsonl"],
        "build": ["build", "recipe.yaml", "-o", "set", *workers],
        "export": ["export", "set", "--to", "mds", *workers],
        "verify": ["verify", "set"],
    }[name]


def measured(words: list[str], home: Path) -> dict[str, Any]:
    """Run a command; its peak in MB, of it what is no page of a file, and its seconds."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "datamix", *words], cwd=home, stdout=subprocess.DEVNULL, start_new_session=True
    )
    peak = anonymous = 0
    while process.poll() is None:
        sizes = [pss(pid) for pid in session(process.pid)]
        peak = max(peak, sum(total for total, _ in sizes))
        anonymous = max(anonymous, sum(total - files for total, files in sizes))
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")
    return {"peak": peak >> 20, "anonymous": anonymous >> 20, "seconds": round(time.monotonic() - began, 1)}


def session(leader: int) -> Iterator[int]:
    """The processes that a command started, and itself."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError, IndexError):
            if int(Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[3]) == leader:
                yield int(name)


def pss(pid: int) -> tuple[int, int]:
    """Bytes of a process, pages that others share divided among them; and of these the pages of files."""
    sizes = {"Pss": 0, "Pss_File": 0}
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            key, _, rest = line.partition(":")
            if key in sizes:
                sizes[key] = int(rest.split()[0]) << 10
    return sizes["Pss"], sizes["Pss_File"]


def plot(lines: list[dict[str, Any]], title: str) -> str:
    """An SVG: MB of input to the right (each step doubles), peak MB upwards, a line a command; dashed with pages of files."""
    width, height, left, top = 640, 320, 60, 20
    sizes = sorted({line["megabytes"] for line in lines})
    most = max(line["peak"] for line in lines) * 1.1
    span = max(np.log2(sizes[-1] / sizes[0]), 1)

    def place(line: dict[str, Any], what: str = "anonymous") -> tuple[float, float]:
        x = left + (width - left - 110) * np.log2(line["megabytes"] / sizes[0]) / span
        return round(float(x), 1), round(height - 40 - (height - 40 - top) * line[what] / most, 1)

    parts = []
    for step in range(0, int(most), 500 if most < 4000 else 1000):
        y = place({"megabytes": sizes[0], "anonymous": step})[1]
        parts.append(f'<line x1="{left}" x2="{width - 110}" y1="{y}" y2="{y}" stroke="#8884"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{step:,}</text>')
    for size in sizes:
        x = place({"megabytes": size, "anonymous": 0})[0]
        parts.append(f'<text x="{x}" y="{height - 22}" text-anchor="middle">{size:,}</text>')
    free = height - 44.0  # names one above the other
    for name, color in sorted(zip(COMMANDS, COLORS, strict=True), key=lambda item: _last(lines, item[0])):
        points = [place(line) for line in lines if line["name"] == name]
        for what, look in (("anonymous", 'stroke-width="2"'), ("peak", 'stroke-dasharray="3 3"')):
            path = " ".join("{},{}".format(*place(line, what)) for line in lines if line["name"] == name)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" {look}/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="3" fill="{color}"/>' for x, y in points]
        free = min(points[-1][1] + 4, free)
        parts.append(f'<text x="{points[-1][0] + 8}" y="{free}" fill="{color}">{name}</text>')
        free -= 14
    below = f'<text x="{left}" y="{height - 4}">{title}</text>'
    style = 'font-family="sans-serif" font-size="12" fill="#888"'
    body = "\n".join([*parts, below])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {style}>\n{body}\n</svg>\n'
    )


def _last(lines: list[dict[str, Any]], name: str) -> int:
    return max(line["anonymous"] for line in lines if line["name"] == name)


if __name__ == "__main__":
    main()
