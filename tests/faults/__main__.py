"""``make test-faults``: every command that writes meets faults of every kind, and must lose nothing.

After each fault the command is run again, with what its error advises: it must make the bytes of a run that nothing happened to, leave
nothing half-done behind, and leave every file, link and hard link of the user around and inside OUT as it was. No fault is called a bug of
datamix, shows a traceback or hangs.

Faults are tried in the order of a seed, a few of each kind and command in turn. Each outcome is saved: a stopped run goes on, and a
change of the package begins anew. ``--short`` tries the same few of each, in about three minutes. Exit 1 where one failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
STATE = ROOT / ".faults"
os.environ |= {
    "TOKENIZERS_PARALLELISM": "false",
    "OPENBLAS_NUM_THREADS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}  # no threads before a fork
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


def main() -> int:
    options = argparse.ArgumentParser(prog="make test-faults", description=__doc__)
    options.add_argument("--short", action="store_true", help="a few of each kind and command")
    options.add_argument(
        "--minutes", type=float, default=120.0, help="end after so many minutes (default 120)"
    )
    options.add_argument("--seed", type=int, default=1, help="of the order (default 1)")
    options.add_argument("--only", default="", help="faults whose name contains this")
    asked = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # projects are removed, file systems unmounted
    from faults import syscalls

    if missing := syscalls.why_unavailable():
        print(f"SKIPPED, nothing was tested: {missing}.")
        return 0
    if os.geteuid():
        print("SKIPPED without root: full disks, other file systems.")
    memory = Path("/dev/shm")
    home = Path(
        tempfile.mkdtemp(prefix="datamix-faults-", dir=memory if os.access(memory, os.W_OK) else None)
    )
    try:
        return _try_all(home, asked)
    finally:
        shutil.rmtree(home)


def _try_all(home: Path, asked: argparse.Namespace) -> int:
    from faults.bench import Bench
    from faults.commands import BY_NAME
    from faults.kinds import KINDS

    bench, results = Bench(home), Results(STATE / f"{_version()}.jsonl")
    deadline = time.monotonic() + 60 * asked.minutes
    for kind, command, fault in _in_turn(bench, asked):
        name = f"{kind}: {command}: {' '.join(map(str, fault))}"
        if asked.only not in name or (name in results.known and not asked.only and not asked.short):
            continue
        if time.monotonic() > deadline:
            print("The time is over; the same command goes on.")
            break
        began = time.monotonic()
        try:
            outcome = KINDS[kind].done(bench, BY_NAME[command], fault)
        except Exception:
            outcome = f"the trial itself failed: {traceback.format_exc()}"
        results.add(name, kind, command, outcome, time.monotonic() - began)
    print(results.table())
    return int(results.num_failed > 0)


def _in_turn(bench: Any, asked: argparse.Namespace) -> Iterator[tuple[str, str, Any]]:
    """Faults of each kind and command in turn, each in a random order of its own."""
    from faults.commands import COMMANDS
    from faults.kinds import KINDS

    lanes: list[tuple[str, str, int, Iterator[Any]]] = []
    for name, kind in KINDS.items():
        for command in (c for c in COMMANDS if c.is_in_short or not asked.short):
            lane = f"{name}: {command.name}: "
            if asked.only not in lane and not asked.only.startswith(lane):
                continue
            faults = kind.every(bench, command)
            random.Random(f"{asked.seed} {lane}").shuffle(faults)
            chosen = faults[: kind.num_short] if asked.short else faults
            lanes.append((name, command.name, kind.num_short, iter(chosen)))
    while lanes:
        for lane in list(lanes):
            name, command, num, faults = lane
            taken = [fault for _, fault in zip(range(num), faults, strict=False)]
            if not taken:
                lanes.remove(lane)
            yield from ((name, command, fault) for fault in taken)


def _version() -> str:
    """A digest of the package and of what tries it."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "datamix").rglob("*.py"), *(ROOT / "tests/faults").glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


class Results:
    """Outcomes by the name of the fault, saved a line each."""

    def __init__(self, path: Path) -> None:
        self.known: dict[str, dict[str, Any]] = {}
        self.num_failed = 0
        self._path, self._began = path, time.monotonic()
        path.parent.mkdir(exist_ok=True)
        if path.exists():
            lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            self.known = {line["name"]: line for line in lines}

    def add(self, name: str, kind: str, command: str, outcome: str, seconds: float) -> None:
        line = {
            "name": name,
            "kind": kind,
            "command": command,
            "outcome": outcome,
            "seconds": round(seconds, 2),
        }
        self.known[name] = line
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        if not outcome.startswith(("OK", "none")):
            self.num_failed += 1
            print(f"FAILED {name}\n  {outcome}", flush=True)

    def table(self) -> str:
        """Kinds of faults, and how many ended in which way."""
        counts = Counter((line["kind"], _short(line["outcome"])) for line in self.known.values())
        lines = [
            f"{num:>6}  {kind}: {outcome}"
            for (kind, outcome), num in sorted(counts.items())
            if outcome != "none"
        ]
        met = sum(num for (_, outcome), num in counts.items() if outcome != "none")
        return "\n".join([*lines, f"{met:>6}  faults in all, saved in {self._path.relative_to(ROOT)}"])


def _short(outcome: str) -> str:
    return outcome.removeprefix("OK ") if outcome.startswith(("OK", "none")) else "FAILED"


if __name__ == "__main__":
    sys.exit(main())
