"""All benchmarks as one command, and one table of what they measured: ``benchmarks/results.json``.

    make bench                                       everything, about two hours; PEERS=PYTHON names the Python that has the peers
    python benchmarks/bench.py small columns         only these; the table keeps the rest
    python benchmarks/bench.py sft --megabytes 256 --peers .venv-peers/bin/python

Contenders run in turns, whole processes, at least three rounds; the table has medians of clock and processor time, with the versions
of what ran and the machine. A peer that is not installed is in the table with the reason. ``printed`` holds the lines of the benchmarks that
print tables of their own. The figures in the documentation are written from the table: ``python docs/make_figures.py``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import end_to_end
import small
from end_to_end import Contender, run_once

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PACKAGES = ("datamix-toolkit", "fastokens", "tokenizers", "transformers", "pyarrow", "numpy", "numba")
PEER_PACKAGES = ("trl", "torch", "datasets", "transformers", "tokenizers", "datatrove")
PRINTING: dict[str, list[str]] = {  # benchmarks that print their own tables, three rounds each
    "dedupe": ["dedupe.py", "--documents", "25000", "100000", "200000"],
    "read": ["read.py"],
    "pack": ["pack.py"],
    "mix": ["mix.py"],
    "load": ["load.py"],
    "export": ["export.py"],
    "reweigh": ["reweigh.py"],
    "memory": ["memory.py", "--results", "/dev/null"],
}
TAKES_PEERS = ("dedupe", "read", "load", "export")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", default=[*MEASURES, *PRINTING])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=64, help="of the builds of sft and pretrain")
    parser.add_argument("--peers", default=sys.executable, help="the Python that has the peers")
    given = parser.parse_args()
    table = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for what in given.what:
        begin = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix=f"bench-{what}-") as name:
            measured = MEASURES[what](Path(name), given) if what in MEASURES else printed(what, given)
        table[what] = {**stamp(given), **measured}
        RESULTS.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{what}: {time.perf_counter() - begin:.0f} s", flush=True)
        for row in measured.get("rows", []):
            print("  " + "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def stamp(given: argparse.Namespace) -> dict[str, Any]:
    """When and on what it was measured."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "date": datetime.date.today().isoformat(),
        "rounds": given.rounds,
        "machine": {
            "processors": len(os.sched_getaffinity(0)),
            "gigabytes": round(memory),
            "load": round(os.getloadavg()[1], 1),
        },
        "versions": {"python": platform.python_version(), **versions(PACKAGES)},
        "peers": peer_versions(given.peers),
    }


def versions(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def peer_versions(python: str) -> dict[str, str]:
    code = f"import json, sys; sys.path.insert(0, {str(HERE)!r}); import bench; print(json.dumps(bench.versions({PEER_PACKAGES!r})))"
    ran = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return dict(json.loads(ran.stdout)) if ran.returncode == 0 else versions(()) | {"peers": "not installed"}


def rows(contenders: list[Contender]) -> dict[str, Any]:
    """Medians of what ran, reasons of what did not."""
    return {
        "rows": [
            {
                "name": one.name,
                "clock": round(statistics.median(one.seconds), 2),
                "processor": round(statistics.median(one.work), 2),
                "peak_megabytes": round(max(one.peaks) / 1e6),
            }
            for one in contenders
            if not one.failed
        ],
        "skipped": [{"name": one.name, "reason": one.failed} for one in contenders if one.failed],
    }


def in_turns(contenders: list[Contender], rounds: int) -> dict[str, Any]:
    for _ in range(rounds):
        for one in contenders:
            if not one.failed:
                run_once(one)
    return rows(contenders)


def measure_small(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    return rows(small.measure(folder, given.rounds))


def measure_columns(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "columns.py"), "--megabytes", "16"]
    runs = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(given.rounds)
    ]
    return {
        "rows": [
            {"name": name, "processor": round(statistics.median(r[name] for r in runs), 3)}
            for name in runs[0]
        ]
    }


def measure_sft(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    texts = folder / "sft.jsonl"
    end_to_end.write_conversations(texts, given.megabytes)
    contenders = end_to_end.sft_contenders(folder, texts, given.peers)
    return {"megabytes": given.megabytes, **in_turns(contenders, given.rounds)}


def measure_pretrain(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    texts, _ = end_to_end.write_halves(folder, given.megabytes)
    contenders = end_to_end.pretrain_contenders(folder, texts, given.peers, None)
    return {"megabytes": given.megabytes, **in_turns(contenders, given.rounds)}


def printed(what: str, given: argparse.Namespace) -> dict[str, Any]:
    """The lines that a benchmark prints, or why it did not run."""
    script, *arguments = PRINTING[what]
    peers = ["--peers", given.peers] if what in TAKES_PEERS else []
    ran = subprocess.run(
        [sys.executable, str(HERE / script), *arguments, *peers], capture_output=True, text=True, check=False
    )
    if ran.returncode:
        return {"skipped": [{"name": what, "reason": (ran.stderr.strip().splitlines() or ["no output"])[-1]}]}
    return {"printed": ran.stdout.splitlines()}


MEASURES: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "small": measure_small,
    "columns": measure_columns,
    "sft": measure_sft,
    "pretrain": measure_pretrain,
}

if __name__ == "__main__":
    main()
