"""What workers share, seen from programs of their own: the process that forks them is one a program."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
import os

made_by = []


def make(spec):
    if spec == "broken":
        raise ValueError("what is asked for does not exist")
    made_by.append((os.getpid(), spec))


def look(spec, folder):
    return {"made": [list(one) for one in made_by], "here": os.getpid(), "told": os.environ.get("DATAMIX_NURSERY")}
"""
PROGRAM = """
import json, sys
from pathlib import Path

import thing
from datamix.core.contracts import Task
from datamix.pipeline.engine import LocalEngine

if __name__ == "__main__":
    engine = LocalEngine(2)
    spec = sys.argv[1]
    engine.warm(thing.make, spec * 50_000 if spec == "large" else spec)
    tasks = [Task("look", f"{n:064x}", thing.look, n, Path("store"), 1) for n in range(2)]
    print(json.dumps([receipt.counts for _, receipt in engine.run(tasks)]))
    engine.close()
"""


def run(folder: Path, spec: str) -> list[dict[str, object]]:
    (folder / "thing.py").write_text(MODULE)
    (folder / "program.py").write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "program.py", spec], cwd=folder, capture_output=True, text=True, check=True
    )
    found: list[dict[str, object]] = json.loads(done.stdout)
    return found


def test_workers_have_what_was_made_once_before_they_were_forked(tmp_path: Path) -> None:
    counts = run(tmp_path, "a tokenizer")
    makers = {one[0] for found in counts for one in found["made"]}  # type: ignore[attr-defined]
    assert len(makers) == 1
    assert makers.isdisjoint(found["here"] for found in counts)
    assert [found["told"] for found in counts] == [None, None]


@pytest.mark.parametrize("spec", ["broken", "large"])
def test_what_cannot_be_made_ready_is_left_to_the_tasks(tmp_path: Path, spec: str) -> None:
    assert [found["made"] for found in run(tmp_path, spec)] == [[], []]
