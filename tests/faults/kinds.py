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
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from faults.bench import (
    ELSEWHERE,
    OTHER_CACHE,
    UNTOUCHED,
    Answer,
    Bench,
    Ended,
    Running,
    complaint,
    differences,
    finish,
    half_done,
)
from faults.commands import BUILD, Command
from faults.project import contents
from faults.syscalls import OPERATIONS

Fault = tuple[str | int, ...]
FAILURES = {name: getattr(errno, name) for name in ("EIO", "ENOSPC", "EPERM")}
_STAYS_FULL = ("write", "mkdir", "link")  # with ENOSPC, all later ones fail as well
STOPPED = "OK clear error, same bytes after a rerun"


def checked(bench: Bench, command: Command, ended: Ended, codes: set[int]) -> str:
    """What is wrong with a command that met a fault: with its end, with what it made, or with what a rerun makes."""
    if fault := wrong_end(ended, codes):
        return fault
    if ended.code == 0 and (different := differences(bench, command)):
        if command.tells and command.tells in (bench.root / command.made[0]).read_text(encoding="utf-8"):
            return finish(bench, command) or "OK went on, and said what it left out"
        return f"success with other bytes: {different}: {ended.said[-500:]}"
    return resumed(bench, command) or (STOPPED if ended.code else "OK went on, same bytes")


def resumed(bench: Bench, command: Command) -> str:
    """What is wrong with what a stopped command left, or with a rerun."""
    return half_done(bench, command) or finish(bench, command)


def wrong_end(ended: Ended, codes: set[int]) -> str:
    """What is wrong with an end, with the words that were said; empty where nothing is."""
    fault = complaint(ended) or ("" if ended.code in codes else f"exit code {ended.code}")
    return fault and f"{fault}: {ended.said[-1500:]}"


def at_call(n: int, act: Callable[[int], None]) -> Answer:
    """An answer that does something at the N-th call of all, and fails none."""
    seen = 0

    def answer(operation: str, number: int, pid: int) -> int:
        nonlocal seen
        seen += 1
        if seen == n:
            act(pid)
        return 0

    return answer


def some_calls(bench: Bench, command: Command, most: int) -> list[int]:
    """Moments of a command, as numbers of calls, evenly spread."""
    total = bench.calm(command).counts.total()
    return list(range(1, total + 1, max(1, total // most)))


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


def full_disks(bench: Bench, command: Command) -> list[Fault]:
    """A disk of its own for the project, or for the cache, is full after some KB or files. Needs root."""
    sizes = [*range(0, 400, 16), *range(400, 2000, 100)]
    all_places = ("project", "cache") if command.has_workers else ("project",)
    found: list[Fault] = [(place, "KB", n) for place in all_places for n in sizes]
    return [*found, *(("project", "files", n) for n in range(0, 90, 3))] if os.geteuid() == 0 else []


def fill_disk(bench: Bench, command: Command, fault: Fault) -> str:
    place, what, n = str(fault[0]), fault[1], int(fault[2])
    with bench.mounted(command, "out/.datamix" if place == "cache" else "") as folder:
        status = os.statvfs(folder)
        used = (status.f_blocks - status.f_bfree) * status.f_frsize
        files = f"nr_inodes={status.f_files - status.f_ffree + n}"
        _remount(folder, files if what == "files" else f"size={used + (n << 10)}")
        ended = bench.run(command.spelled(1), is_watched=False)
        if place == "cache" and ended.code:
            moved = (*command.spelled(1), "--cache", OTHER_CACHE)
            fault_found = wrong_end(ended, {4}) or (
                "" if "--cache" in ended.said else f"no advice: {ended.said}"
            )
            return (
                fault_found
                or half_done(bench, command)
                or finish(bench, command, moved)
                or "OK clear error, another cache helps"
            )
        _remount(folder, "size=1g,nr_inodes=0")
        return checked(bench, command, ended, {0, 4})


def _remount(folder: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", folder], check=True)


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


def places(bench: Bench, command: Command) -> list[Fault]:
    """OUT is read-only, behind a link, on another file system than the inputs or the cache, or its name is taken; some with a kill."""
    hows = ["read-only"] + ["file", "nowhere"] * command.makes_folder
    hows += ["link"] * command.has_workers + ["out", "out/.datamix"] * (os.geteuid() == 0)
    kills = [0, *some_calls(bench, command, 8)]
    return [(how, n) for how in hows for n in (kills if how in ("link", "out", "out/.datamix") else [0])]


def use_place(bench: Bench, command: Command, fault: Fault) -> str:
    how, n = str(fault[0]), int(fault[1])
    with placed(bench, command, how):
        running = bench.start(command.spelled(1))
        ended = running.wait(bench.root, at_call(n, lambda pid: os.killpg(running.pid, signal.SIGKILL)))
        if ended.code != -signal.SIGKILL:
            refused = how in ("file", "nowhere", "read-only")
            if fault_found := wrong_end(ended, {2, 4} if refused else {0}):
                return fault_found
        if how == "read-only":
            _unlock(bench.root / "out")
        return resumed(bench, command) or "OK same bytes, at once or after what the error advises"


@contextmanager
def placed(bench: Bench, command: Command, how: str) -> Iterator[None]:
    """A fresh project with one strange place for what the command writes."""
    if how.startswith("out"):
        with bench.mounted(command, how):
            yield
        return
    bench.fresh(command)
    made = bench.root / command.made[0]
    if how == "link":
        (bench.root / "behind").mkdir()
        inside = {name.replace(command.made[0], "behind/x", 1) for name in bench.user.inside}
        made.rename(bench.root / "behind/x") if made.exists() else (bench.root / "behind/x").mkdir()
        made.symlink_to("../behind/x")
        bench.note_user_files(command, inside, "behind/x")
    elif how in ("file", "nowhere"):
        made.write_text("mine") if how == "file" else made.symlink_to("gone/gone")
        bench.note_user_files(command, set(), *command.made[1:])
    else:
        _lock(bench.root / "out")
    try:
        yield
    finally:
        if how == "read-only":
            _unlock(bench.root / "out")


def _lock(folder: Path) -> None:
    if os.geteuid() == 0:
        subprocess.run(["mount", "--bind", folder, folder], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    else:
        folder.chmod(0o555)


def _unlock(folder: Path) -> None:
    if os.geteuid() == 0:
        subprocess.run(["umount", folder], check=False, stderr=subprocess.DEVNULL)
    else:
        folder.chmod(0o755)


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
    "a full disk": Kind(full_disks, fill_disk, 1),
    "a damaged file": Kind(damages, damage, 2),
    "an input changes": Kind(inputs, change_input, 1),
    "two at once": Kind(neighbours, run_beside, 1),
    "places": Kind(places, use_place, 1),
}
