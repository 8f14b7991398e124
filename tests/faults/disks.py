"""Faults of disks and places: full ones, read-only ones, other file systems, links, names that are taken. Most need root."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.bench import Bench, at_call, some_calls
from faults.commands import Command
from faults.judge import OTHER_CACHE, checked, finish, half_done, resumed, wrong_end

Fault = tuple[str | int, ...]


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


def places(bench: Bench, command: Command) -> list[Fault]:
    """OUT is read-only, behind a link, on another file system than the inputs or the cache, or its name is taken; some with a kill."""
    hows = ["read-only"] + ["file", "nowhere"] * command.makes_folder
    hows += ["link"] * any(name.endswith("/manifest.json") for name in bench.calm(command).contents) + [
        "out",
        "out/.datamix",
    ] * (os.geteuid() == 0)
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
