"""``make mutants``: take out or negate one line at a time at the seams, and see that a test fails.

Works in a copy of the checkout. A mutant is a statement replaced by ``pass`` or a condition replaced by its negation; the tests named
for its file run until the first failure. Results are saved after each mutant, so that a stopped run continues; the same seed takes
the same sample. Ends after the minutes given, prints the survivors and how many of how many were killed.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
STATE = ROOT / ".mutants"
SEAMS = {  # file -> tests that cover it
    "pipeline/select.py": ["tests/pipeline/test_fates.py", "tests/test_build.py"],
    "pipeline/prepare_sources.py": [
        "tests/pipeline/test_fates.py",
        "tests/test_build.py",
        "tests/pipeline/test_certified.py",
    ],
    "pipeline/publish.py": [
        "tests/pipeline/test_out_folder.py",
        "tests/test_weights.py",
        "tests/test_virtual.py",
        "tests/test_build.py",
    ],
    "pipeline/out_folder.py": ["tests/pipeline/test_out_folder.py"],
    "pipeline/building.py": ["tests/pipeline/test_out_folder.py"],
    "pipeline/reweigh.py": ["tests/test_changing.py"],
    "pipeline/store.py": ["tests/pipeline/test_certified.py", "tests/test_faults.py"],
    "commands/cli.py": ["tests/commands"],
}


@dataclass(frozen=True)
class Mutant:
    """One change: lines ``start..stop`` (from 1) of a file become ``text``."""

    file: str
    start: int
    stop: int
    text: str

    @property
    def name(self) -> str:
        return f"datamix/{self.file}:{self.start} -> {self.text.strip()}"


def mutants(file: str) -> Iterator[Mutant]:
    """Every change of a file: statements out, conditions negated."""
    source = (ROOT / "datamix" / file).read_text(encoding="utf-8")
    for function in (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)):
        for node in ast.walk(function):
            if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant | ast.Yield):
                yield Mutant(file, node.lineno, node.end_lineno or 0, " " * node.col_offset + "pass")
            elif isinstance(node, ast.If) and node.test.lineno == node.test.end_lineno:
                line = source.splitlines()[node.test.lineno - 1]
                test = line[node.test.col_offset : node.test.end_col_offset]
                negated = f"{line[: node.test.col_offset]}not ({test}){line[node.test.end_col_offset :]}"
                yield Mutant(file, node.test.lineno, node.test.lineno, negated)
            elif isinstance(node, ast.Raise):
                yield Mutant(file, node.lineno, node.end_lineno or 0, " " * node.col_offset + "pass")


def is_killed(mutant: Mutant, copy: Path) -> bool:
    """Whether a test of its file fails with the change in place."""
    path = copy / "datamix" / mutant.file
    whole = path.read_text(encoding="utf-8")
    lines = whole.splitlines()
    lines[mutant.start - 1 : mutant.stop] = [mutant.text]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", *SEAMS[mutant.file]]
    try:
        return (
            subprocess.run(command, cwd=copy, capture_output=True, timeout=300, check=False).returncode != 0
        )
    except subprocess.TimeoutExpired:
        return True
    finally:
        path.write_text(whole, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    copy, saved = STATE / "copy", STATE / "results.json"
    shutil.rmtree(copy, ignore_errors=True)
    ignored = shutil.ignore_patterns(".*", "__pycache__", "demo")
    shutil.copytree(ROOT, copy, ignore=ignored)
    results: dict[str, bool] = json.loads(saved.read_text()) if saved.exists() else {}
    chosen = [mutant for file in SEAMS for mutant in mutants(file)]
    random.Random(options.seed).shuffle(chosen)
    end = time.monotonic() + options.minutes * 60
    for mutant in chosen:
        if time.monotonic() > end:
            break
        if mutant.name not in results:
            results[mutant.name] = is_killed(mutant, copy)
            saved.write_text(json.dumps(results, indent=1))
            print("killed  " if results[mutant.name] else "SURVIVED", mutant.name, flush=True)
    survivors = [name for name, killed in results.items() if not killed]
    print("\n".join(["", "Survivors:", *survivors]))
    print(f"{len(results) - len(survivors)} of {len(results)} killed; {len(chosen)} in all")


if __name__ == "__main__":
    main()
