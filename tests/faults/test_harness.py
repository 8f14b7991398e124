"""The harness finds what it is made to find: bugs planted in a command are reported, and a command without them is not."""

import subprocess
import sys
from pathlib import Path

import pytest
from faults.syscalls import why_unavailable
from small import ROOT

PLANTED = """
import os, sys
from contextlib import contextmanager
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"
from datamix.jobs import convert, output_files
from faults.bench import Bench
from faults.commands import BY_NAME
from faults.kinds import KINDS

bench, command = Bench(Path(sys.argv[1])), BY_NAME["convert again"]
bench.calm(command)


@contextmanager
def in_place(outputs, overwrite):
    yield outputs


@contextmanager
def careless(outputs, overwrite):
    Path("out/hard.txt").write_text("oh")
    with whole(outputs, overwrite) as drafts:
        yield drafts


def unexpected(*arguments):
    raise RuntimeError("oh")


whole = output_files.complete_files
{plant}
kind, *fault = {fault}
print(KINDS[kind].done(bench, command, tuple(fault)))
"""


def outcome(folder: Path, plant: str, fault: tuple[str | int, ...]) -> str:
    program = PLANTED.replace("{plant}", plant).replace("{fault}", repr(fault))
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TOKENIZERS_PARALLELISM": "false"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable() or "available")
@pytest.mark.parametrize(
    ("plant", "fault", "words"),
    [
        ("", ("a system call fails", "write", "EIO", 5), "OK clear error"),
        ("convert.complete_files = in_place", ("a system call fails", "write", "EIO", 5), "half-written"),
        (
            "convert.complete_files = careless",
            ("limits", "FSIZE", 1 << 20),
            "files of the user changed: ['mine/notes",
        ),
        ("convert.shape = unexpected", ("limits", "FSIZE", 1 << 20), "exit code 70"),
        ("convert.complete_files = in_place", ("signals", "SIGKILL", "parent", 10), "half-written"),
    ],
)
def test_planted_bugs_are_found_and_a_command_without_them_passes(
    tmp_path: Path, plant: str, fault: tuple[str | int, ...], words: str
) -> None:
    assert words in outcome(tmp_path, plant, fault)
