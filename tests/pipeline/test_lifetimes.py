"""Workers and what they are forked from end with the process that started them; signals interrupt a command, which resumes."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small import datamix, fingerprint, recipe

MODULE = """
import os
import threading
from pathlib import Path


def wait_for_ever(spec, folder):
    Path(spec, f"{os.getpid()}-{os.getppid()}").touch()
    threading.Event().wait()


def hold_the_interpreter(spec, folder):
    Path(spec, f"{os.getpid()}-{os.getppid()}").touch()
    sum(range(10**12))  # never lets another thread run
"""
PROGRAM = """
import sys
from pathlib import Path

import thing
from datamix.core.contracts import Task
from datamix.pipeline.engine import LocalEngine

if __name__ == "__main__":
    engine = LocalEngine(2)
    if sys.argv[2] == "warm":
        engine.warm(print, "")
    call = getattr(thing, sys.argv[1])
    tasks = [Task("wait", f"{n:064x}", call, "pids", Path("store"), 10 << 20) for n in range(2)]
    try:
        list(engine.run(tasks))
    finally:
        engine.close()
"""


def default_signals() -> None:
    """``nohup`` and shells hand ignored signals on to every child."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def descendants(folder: Path, process: subprocess.Popen[bytes]) -> list[int]:
    """Handles of both workers and of the process that they are forked from."""
    pids = folder / "pids"
    while len(names := os.listdir(pids)) < 2 and process.poll() is None:
        time.sleep(0.01)
    numbers = {int(number) for name in names for number in name.split("-")}
    assert len(numbers) == 3
    return [os.pidfd_open(number) for number in numbers]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills children with their parent")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize(("task", "start"), [("wait_for_ever", "cold"), ("hold_the_interpreter", "warm")])
def test_workers_end_with_their_parent_however_it_ends(
    tmp_path: Path, number: signal.Signals, task: str, start: str
) -> None:
    (tmp_path / "pids").mkdir()
    (tmp_path / "thing.py").write_text(MODULE)
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, "program.py", task, start],
        cwd=tmp_path,
        stderr=subprocess.DEVNULL,
        preexec_fn=default_signals,
    )
    handles = descendants(tmp_path, process)
    process.send_signal(number)
    process.wait(timeout=30)
    for handle in handles:
        assert select.select([handle], [], [], 30)[0]  # readable when it has ended
        os.close(handle)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_a_signal_interrupts_a_build_which_then_resumes(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    path = recipe(tmp_path)
    out = tmp_path / "a" / "set"
    process = subprocess.Popen(
        [sys.executable, "-m", "datamix", "build", str(path), "-o", str(out), "--workers", "2"],
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
        preexec_fn=default_signals,
    )
    while not list((tmp_path / "a/.datamix/store").glob("??/*")) and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Stopped. Finished work is saved" in said
    assert "Traceback" not in said
    assert datamix("build", path, "-o", out, "--workers", "2").returncode == 0
    assert datamix("build", path, "-o", tmp_path / "b" / "set").returncode == 0
    assert fingerprint(out) == fingerprint(tmp_path / "b" / "set")
