"""The kinds of faults: which there are of each for a command, and how each is done.

Of each kind, one function lists its faults for a command, as a few words and numbers; the other runs the command in a fresh project with one
of them, and says ``OK`` how it ended, ``none`` where the fault met nothing, or what is wrong.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from faults import disks
from faults.bench import UNTOUCHED, Bench, Ended, Running, at_call, some_calls
from faults.commands import BUILD, Command
from faults.disks import Fault
from faults.judge import ELSEWHERE, STOPPED, checked, finish, resumed, wrong_end
from faults.project import contents
from faults.syscalls import OPERATIONS

FAILURES = {name: getattr(errno, name) for name in ("EIO", "ENOSPC", "EPERM")}
_STAYS_FULL = ("write", "mkdir", "link")  # with ENOSPC, all later ones fail as well


def failing_calls(bench: Bench, command: Command) -> list[Fault]:
    """A system call fails: each of a few kinds, with each of three reasons, for every N to the end."""
    counts = bench.calm(command).counts
    return [(op, name, n) for op in OPERATIONS for name in FAILURES for n in range(1, counts[op] + 1)]


def fail_call(bench: Bench, command: Command, fault: Fault) -> str:
    operation, name, n = fault
    lasts = name == "ENOSPC" and operation in _STAYS_FULL

    def answer(called: str, number: int, pid: int) -> int:
        is_it = called == operation and (number == n or (lasts and number > int(n)))
        return FAILURES[str(name)] if is_it else 0

    bench.fresh(command)
    return checked(bench, command, bench.run(command.spelled(1), answer), {0, 3, 4})


def signals(bench: Bench, command: Command) -> list[Fault]:
    """A process is killed, interrupted, or stopped while the same command is run beside it, and goes on."""
    victims = ("group", "parent", "worker") if command.has_workers else ("parent",)
    ways = [(name, victim) for name in ("SIGKILL", "SIGTERM", "SIGSTOP") for victim in victims]
    return [(*way, n) for n in some_calls(bench, command, 40) for way in ways]


def send(bench: Bench, command: Command, fault: Fault) -> str:
    number, victim, n = getattr(signal, str(fault[0])), fault[1], int(fault[2])
    sent: list[int] = []
    others: list[Ended] = []

    def act(pid: int) -> None:
        workers = [p for p in session(running.pid) if p != running.pid]
        if victim == "worker" and not workers:
            return
        sent.append(-running.pid if victim == "group" else workers[-1] if victim == "worker" else running.pid)
        with suppress(ProcessLookupError):
            kill(sent[0], number)
            if number == signal.SIGSTOP:
                others.append(bench.run(command.spelled(1), is_watched=False))
                kill(sent[0], signal.SIGCONT)

    bench.fresh(command)
    running = bench.start(command.spelled(2), no_small_work)
    ended = running.wait(bench.root, at_call(n, act))
    if not sent:
        return "none"
    deadline = time.monotonic() + 10
    while left := session(running.pid):
        if time.monotonic() > deadline:
            return f"processes outlive the command: {left}"
        time.sleep(0.01)
    if number == signal.SIGSTOP:
        return both_ended(bench, command, [ended, *others])
    if number == signal.SIGKILL and ended.code == -number:
        return resumed(bench, command) or "OK killed, same bytes after a rerun"
    return checked(bench, command, ended, {0, 4} if victim == "worker" else {0, 143})


def kill(target: int, number: int) -> None:
    os.kill(target, number) if target > 0 else os.killpg(-target, number)


def no_small_work() -> None:
    """In the command's process: leave to workers what is otherwise too little for them."""
    from datamix.pipeline import engine

    engine._SMALL_BYTES = 0


def session(leader: int) -> list[int]:
    """The processes of a session, oldest first; zombies are no more."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError, IndexError):
            fields = Path("/proc", name, "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(name))
    return sorted(found)


def limits(bench: Bench, command: Command) -> list[Fault]:
    """A limit of the size of files (bytes), of open files, or of memory beyond what is loaded (MB)."""
    every = {
        "FSIZE": [0, 1, 100, 1000, 4000, 8000, 16000, 32000, 64000, 128000],
        "NOFILE": [*range(4, 24, 2), 32, 40, 64],
        "AS": [8, 16, 32, 64, 96, 128, 192, 256, 384, 512],
    }
    return [(name, value) for name, values in every.items() for value in values]


def limit(bench: Bench, command: Command, fault: Fault) -> str:
    name, amount = str(fault[0]), int(fault[1])

    def set_limit() -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        value = (amount << 20) + pages * resource.getpagesize() if name == "AS" else amount
        what = getattr(resource, f"RLIMIT_{name}")
        resource.setrlimit(what, (value, resource.getrlimit(what)[1]))

    bench.fresh(command)
    ended = bench.run(command.spelled(1), prepare=set_limit, is_watched=False)
    if name == "AS" and ended.code in (-signal.SIGABRT, -signal.SIGSEGV):
        return resumed(bench, command) or "OK aborted by a library, same bytes after a rerun"
    return checked(bench, command, ended, {0, 3, 4})


def damages(bench: Bench, command: Command) -> list[Fault]:
    """A file of the cache, or of OUT where the command makes all of it, is damaged between two commands."""
    makes_all = not command.inside or "--overwrite" in command.words
    files = [name for name in bench.calm(command).files if makes_all or "out/.datamix/" in name]
    return [(how, name) for name in files for how in ("halved", "flipped", "emptied", "deleted")]


def damage(bench: Bench, command: Command, fault: Fault) -> str:
    how, path = fault[0], bench.root / str(fault[1])
    bench.fresh(command)
    if not command.before:
        ended = bench.run(command.spelled(1), is_watched=False)
        assert ended.code == 0, ended.said
    if not path.exists():  # its key is of the times of inputs
        return "none"
    content, middle = path.read_bytes(), path.stat().st_size // 2
    path.unlink()
    flipped = content[:middle] + bytes([(*content, 0)[middle] ^ 1]) + content[middle + 1 :]
    if how != "deleted":
        path.write_bytes({"halved": content[:middle], "flipped": flipped, "emptied": b""}[str(how)])
    return finish(bench, command) or "OK same bytes after a rerun, or after what the error advises"


def inputs(bench: Bench, command: Command) -> list[Fault]:
    """An input is changed while the command runs, and put back afterwards (``swapped``: soon)."""
    if command.inside and command.name != "replace":
        return []
    files = ["raw/medical.jsonl" if command.name == "convert again" else "raw/general.jsonl"]
    files += ["tokenizer/tokenizer.json"] * command.has_workers
    hows = ("removed", "swapped", "appended", "touched", "replaced")
    return [(name, how, n) for n in some_calls(bench, command, 30) for name in files for how in hows]


def change_input(bench: Bench, command: Command, fault: Fault) -> str:
    name, how, n = str(fault[0]), str(fault[1]), int(fault[2])
    expected = bench.calm(command).contents, bench.calm_changed(command, changing(name, how))
    bench.fresh(command)
    path = bench.root / name
    original = path.read_bytes()
    seen = 0

    def answer(operation: str, number: int, pid: int) -> int:
        nonlocal seen
        seen += 1
        if seen == n:
            changing(name, how)(bench.root)
        if seen == n + 12 and how == "swapped":
            _put_back(path, original)
        return 0

    ended = bench.run(command.spelled(1), answer)
    made = contents(bench.root, command.made)
    _put_back(path, original)
    if fault_found := wrong_end(ended, {0, 2, 3}):
        return fault_found
    if ended.code and path.name not in ended.said:
        return f"the error does not name the file: {ended.said[-1500:]}"
    if not ended.code and made not in expected:
        return "success with bytes of neither state of the input"
    if not ended.code and made != expected[0]:
        return "OK read the changed input whole"
    return finish(bench, command) or (STOPPED if ended.code else "OK went on, same bytes")


@cache
def changing(name: str, how: str) -> Callable[[Path], None]:
    """A change of an input; the file that was there may lie ``aside``."""

    def change(root: Path) -> None:
        path = root / name
        content = path.read_bytes()
        if how == "touched":
            os.utime(path)
        elif how == "appended":
            line = (
                b"\n" if path.suffix == ".json" else content[: content.index(b"\n") + 1].replace(b"0", b"7")
            )
            path.write_bytes(content + line)
        else:
            path.rename(path.with_name("aside"))
            if how != "removed":
                path.write_bytes(content.replace(b"recursion", b"induction"))

    return change


def _put_back(path: Path, original: bytes) -> None:
    aside = path.with_name("aside")
    if aside.exists():
        aside.replace(path)
    elif path.read_bytes() != original:
        path.write_bytes(original)


def neighbours(bench: Bench, command: Command) -> list[Fault]:
    """Another command is run at some moment: the same one, or on the same cache a pruning or another build."""
    others = ("same", "prune", "build") if command.has_workers else ("same",)
    return [(other, n) for n in some_calls(bench, command, 40) for other in others]


def run_beside(bench: Bench, command: Command, fault: Fault) -> str:
    words = {
        "same": command.spelled(1),
        "prune": ("cache", "--prune", "--cache", "out/.datamix"),
        "build": (*BUILD[:-1], ELSEWHERE, "--set", "seed=9", "--workers", "1"),
    }[str(fault[0])]
    started: list[Running] = []

    def act(pid: int) -> None:
        started.append(bench.start(words, is_watched=False))
        handle = os.pidfd_open(started[0].pid)
        select.select([handle], [], [], 1.0)  # it may wait for the first: then both go on
        os.close(handle)

    bench.fresh(command)
    ended = bench.run(command.spelled(1), at_call(int(fault[1]), act))
    if not started:
        return "none"
    second = started[0].wait(bench.root, UNTOUCHED)
    if fault[0] == "same":
        return both_ended(bench, command, [ended, second])
    if fault_found := wrong_end(second, {0}):
        return f"the other: {fault_found}"
    shutil.rmtree(bench.root / ELSEWHERE, ignore_errors=True)
    return checked(bench, command, ended, {0})


def both_ended(bench: Bench, command: Command, ends: list[Ended]) -> str:
    """Two runs of one command at once: one is done, and the other done too or refused in words."""
    for ended in ends:
        if fault := wrong_end(ended, {0, 2}):
            return fault
    if all(ended.code for ended in ends):
        return f"both failed: {[ended.said[-700:] for ended in ends]}"
    return finish(bench, command) or "OK both done, or one refused"


@dataclass(frozen=True)
class Kind:
    """A kind of faults: the list of them, how one is done, and how many of a command the short form takes."""

    every: Callable[[Bench, Command], list[Fault]]
    done: Callable[[Bench, Command, Fault], str]
    num_short: int


KINDS = {
    "a system call fails": Kind(failing_calls, fail_call, 6),
    "signals": Kind(signals, send, 1),
    "limits": Kind(limits, limit, 1),
    "a full disk": Kind(disks.full_disks, disks.fill_disk, 1),
    "a damaged file": Kind(damages, damage, 2),
    "an input changes": Kind(inputs, change_input, 1),
    "two at once": Kind(neighbours, run_beside, 1),
    "places": Kind(disks.places, disks.use_place, 1),
}
