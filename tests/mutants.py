"""``make mutants``: take out or negate one line at a time at the seams, and see that a test fails.

Works in a copy of the checkout. A mutant is a statement replaced by ``pass`` or a condition replaced by its negation. First every
file of tests runs once as it is: it must pass, and a trace notes which of its tests run which lines of the seams. A mutant is then tried on the tests that
run its lines, the shortest first, until one fails; lines that no test runs in its own process are tried on all tests of the seam.

Results are saved after each mutant under the digest of seam and tests: a stopped run continues, and a changed file is tried anew.
The same seed takes the same order. Ends after the minutes given; prints survivors, and how many of how many were killed.
Cost: 5 to 10 s a mutant, of which 2 are the start of pytest.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
STATE = ROOT / ".mutants"
COPY = STATE / "copy"
TRACE = "DATAMIX_TRACE"  # of the plugin below: the file that it writes
WHOLE_BUILDS = ["tests/test_build.py", "tests/pipeline/test_fates.py"]
FOLDERS = ["tests/pipeline/test_out_folder.py", "tests/pipeline/test_out_ownership.py"]
SEAMS = {  # file -> tests that cover it
    "pipeline/select.py": [
        *WHOLE_BUILDS,
        "tests/pipeline/test_contradictions.py",
        "tests/pipeline/test_held_out.py",
    ],
    "pipeline/prepare_sources.py": [*WHOLE_BUILDS, "tests/pipeline/test_certified.py"],
    "pipeline/publish.py": [
        *WHOLE_BUILDS,
        *FOLDERS,
        "tests/test_kept.py",
        "tests/test_weights.py",
        "tests/test_virtual.py",
    ],
    "pipeline/out_folder.py": FOLDERS,
    "pipeline/building.py": FOLDERS,
    "pipeline/reweigh.py": ["tests/test_changing.py"],
    "pipeline/built_sets.py": ["tests/test_cache.py"],
    "pipeline/store.py": [
        "tests/pipeline/test_store.py",
        "tests/pipeline/test_certified.py",
        "tests/test_faults.py",
    ],
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


def mutants(file: str, source: str) -> Iterator[Mutant]:
    """Every change of a file: statements out, conditions negated."""
    lines = source.splitlines()
    for function in (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)):
        for node in ast.walk(function):
            if isinstance(node, ast.stmt) and _can_go(node):
                yield Mutant(file, node.lineno, node.end_lineno or 0, " " * node.col_offset + "pass")
            for test in _conditions(node):
                if test.lineno == test.end_lineno:
                    line = lines[test.lineno - 1].encode()  # columns count bytes
                    begin, end = test.col_offset, test.end_col_offset or 0
                    text = line[:begin] + b"(not (" + line[begin:end] + b"))" + line[end:]
                    yield Mutant(file, test.lineno, test.lineno, text.decode())


def _can_go(node: ast.stmt) -> bool:
    """Statements without which a function still runs; docstrings and names that later lines need stay."""
    if isinstance(node, ast.Expr):
        return not isinstance(node.value, ast.Constant | ast.Yield)
    if isinstance(node, ast.Assign):
        return all(isinstance(target, ast.Subscript | ast.Attribute) for target in node.targets)
    return isinstance(node, ast.Raise | ast.AugAssign)


def _conditions(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        return [node.test]
    return node.ifs if isinstance(node, ast.comprehension) else []


class _Tracer:
    """A pytest plugin: the seconds each test takes, and the lines of the seams that it runs."""

    def __init__(self, result: str) -> None:
        self._result = result
        self._seams = {str(ROOT / "datamix" / file): file for file in SEAMS}
        self._traced: list[tuple[str, float, dict[str, list[int]]]] = []

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        lines: dict[str, set[int]] = {}
        begin = time.monotonic()

        def trace(frame: Any, event: str, _: Any) -> Any:
            file = self._seams.get(frame.f_code.co_filename)
            if file is None:
                return None
            lines.setdefault(file, set()).add(frame.f_lineno)
            return trace

        sys.settrace(trace)
        threading.settrace(trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)
            sorted_lines = {file: sorted(numbers) for file, numbers in lines.items()}
            self._traced.append((item.nodeid, time.monotonic() - begin, sorted_lines))

    def pytest_sessionfinish(self) -> None:
        Path(self._result).write_text(json.dumps(self._traced))


def pytest_configure(config: pytest.Config) -> None:
    if place := os.environ.get(TRACE):
        config.pluginmanager.register(_Tracer(place))


def run_tests(tests: list[str], trace: str = "", limit: float = 900) -> bool:
    """Whether the tests pass in the copy."""
    environment = {**os.environ, "PYTHONPATH": str(COPY / "tests"), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", *(["-p", "mutants"] if trace else []), *tests]
    environment |= {TRACE: trace} if trace else {}
    try:
        done = subprocess.run(
            command, cwd=COPY, env=environment, capture_output=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def traced_tests(path: str) -> list[tuple[str, float, dict[str, list[int]]]]:
    """The tests of a file: name, seconds, lines of each seam. Exits where one fails without any change."""
    saved = STATE / f"{digest_of([path, *(f'datamix/{file}' for file in SEAMS)])}.json"
    if not saved.exists():
        partial = saved.with_suffix(".partial")
        if not run_tests([path], str(partial)):
            sys.exit(f"{path} fails without any change")
        partial.rename(saved)
    traced: list[tuple[str, float, dict[str, list[int]]]] = json.loads(saved.read_text())
    return traced


def is_killed(mutant: Mutant) -> bool:
    """Whether a test fails with the change in place."""
    traced = [test for path in SEAMS[mutant.file] for test in traced_tests(path)]
    changed = range(mutant.start, mutant.stop + 1)
    covering = sorted(
        (s, node) for node, s, lines in traced if any(n in changed for n in lines.get(mutant.file, ()))
    )
    tests = [node for _, node in covering] or SEAMS[mutant.file]
    path = COPY / "datamix" / mutant.file
    whole = path.read_text(encoding="utf-8")
    lines = whole.splitlines()
    lines[mutant.start - 1 : mutant.stop] = [mutant.text]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    try:
        return not run_tests(tests, limit=60 + 4 * sum(s for _, s, _ in traced))
    finally:
        path.write_text(whole, encoding="utf-8")


def digest_of(names: list[str]) -> str:
    """Of files and folders of the copy: what results hold for."""
    paths = [COPY / name for name in names]
    files = [p for path in paths for p in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    return hashlib.sha256(b"\0".join(p.read_bytes() for p in files)).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shutil.rmtree(COPY, ignore_errors=True)
    shutil.copytree(ROOT, COPY, ignore=shutil.ignore_patterns(".*", "__pycache__", "demo"))
    saved = STATE / "results.json"
    results: dict[str, bool] = json.loads(saved.read_text()) if saved.exists() else {}
    keys = {file: digest_of([f"datamix/{file}", *tests]) for file, tests in SEAMS.items()}
    sources = {file: (COPY / "datamix" / file).read_text(encoding="utf-8") for file in SEAMS}
    chosen = {f"{keys[f]} {m.name}": m for f in SEAMS for m in mutants(f, sources[f])}
    order = list(chosen)
    random.Random(options.seed).shuffle(order)
    end = time.monotonic() + options.minutes * 60
    for name in order:
        if time.monotonic() > end:
            break
        if name not in results:
            results[name] = is_killed(chosen[name])
            saved.write_text(json.dumps(results, indent=1))
            print("killed  " if results[name] else "SURVIVED", chosen[name].name, flush=True)
    tried = [name for name in order if name in results]
    survivors = [chosen[name].name for name in tried if not results[name]]
    print("\n".join(["", "Survivors:", *survivors]))
    print(f"{len(tried) - len(survivors)} of {len(tried)} killed; {len(chosen)} in all")


if __name__ == "__main__":
    main()
