"""Run commands in a project that is made anew for each fault, and judge what a fault did.

Commands run in forks of this process, which has imported everything: 0.1 to 0.5 s each instead of 1 to 2. Code under test is that of
the command line, from its arguments to its exit code.
"""

from __future__ import annotations

import atexit
import fcntl
import importlib
import os
import pkgutil
import shutil
import signal
import socket
import subprocess
import sys
import threading
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from faults.commands import Command
from faults.project import add_user_files, contents, make_project, state_of, unfinished
from faults.syscalls import Watch, install_filter

import datamix

TIMEOUT = 120.0
_PIPE_BYTES = 1 << 20
_SET_PIPE_SIZE = 1031
Answer = Callable[[str, int, int], int]
UNTOUCHED: Answer = lambda operation, number, pid: 0  # noqa: E731


def import_modules(names: Iterable[str]) -> None:
    """Import what commands need, once."""
    for name in names:
        if not name.endswith(("__main__", ".preload")):
            with suppress(Exception):  # of an extra that is not installed
                importlib.import_module(name)


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said on stderr."""

    code: int
    said: str
    counts: Counter[str] = field(default_factory=Counter)


@dataclass
class Running:
    """A command that was started."""

    pid: int
    output: int  # its stderr: a pipe, which no limit of file sizes reaches
    channel: socket.socket | None
    hangs: bool = False

    def wait(self, root: Path, answer: Answer) -> Ended:
        """Its end; its calls are answered meanwhile. One that hangs is killed."""
        watch, handle = Watch(root, answer), os.pidfd_open(self.pid)
        timer = threading.Timer(TIMEOUT, self._kill)
        timer.start()
        try:
            if self.channel is not None:
                watch.follow(self.channel, handle)
            _, status = os.waitpid(self.pid, 0)
        finally:
            timer.cancel()
            timer.join()
            os.close(handle)
            if self.channel is not None:
                self.channel.close()
        said = b""
        with suppress(BlockingIOError):
            said = os.read(self.output, _PIPE_BYTES)
        os.close(self.output)
        text = said.decode(errors="replace") + self.hangs * "HANGS"
        return Ended(os.waitstatus_to_exitcode(status), text, watch.counts)

    def _kill(self) -> None:
        self.hangs = True
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


class Bench:
    """One folder in which projects come and go; ``home`` is ours alone."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.root = home / "project"
        self._templates = home / "templates"
        import_modules(module.name for module in pkgutil.walk_packages(datamix.__path__, "datamix."))

    def start(
        self, words: tuple[str, ...], prepare: Callable[[], None] | None = None, is_watched: bool = True
    ) -> Running:
        """Start a command; ``prepare`` is called in its process before it."""
        ours, its = socket.socketpair()
        read, write = os.pipe()
        fcntl.fcntl(write, _SET_PIPE_SIZE, _PIPE_BYTES)
        os.set_blocking(read, False)
        pid = os.fork()
        if pid == 0:
            ours.close()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.setsid()
            os.chdir(self.root)
            nothing = os.open(os.devnull, os.O_RDWR)
            for handle, target in ((nothing, 0), (nothing, 1), (write, 2)):
                os.dup2(handle, target)
            for handle in (nothing, read, write):
                os.close(handle)
            _run(words, prepare, its if is_watched else None)
        its.close()
        os.close(write)
        if not is_watched:
            ours.close()
        return Running(pid, read, ours if is_watched else None)

    def run(
        self,
        words: tuple[str, ...],
        answer: Answer = UNTOUCHED,
        prepare: Callable[[], None] | None = None,
        is_watched: bool = True,
    ) -> Ended:
        """Run a command to its end."""
        return self.start(words, prepare, is_watched).wait(self.root, answer)

    @cache  # noqa: B019 - one bench a process
    def calm(self, command: Command) -> Calm:
        """What the command does when nothing happens; leaves the template of its project."""
        template = self._templates / command.name
        _clear(self.root)
        make_project(self.root)
        for words in command.before:
            ended = self.run(words, is_watched=False)
            assert ended.code == 0, ended.said
        _clear(template)
        shutil.copytree(self.root, template, symlinks=True, dirs_exist_ok=True)
        before = self._files()
        self.fresh(command)
        note = self.home / "modules"
        ended = self.run(command.spelled(1), prepare=lambda: atexit.register(_note_modules, note))
        assert ended.code == 0, ended.said
        import_modules(note.read_text().split("\n"))  # those that it imported late
        assert not unfinished(self.root), unfinished(self.root)
        files = before or [name for name in self._files() if not self.user.holds(name)]
        return Calm(ended.counts, contents(self.root, command.made), files)

    @cache  # noqa: B019
    def calm_changed(self, command: Command, change: Callable[[Path], None]) -> dict[str, str] | None:
        """The content of what the command makes where ``change`` was done to the project before; None: it fails."""
        self.fresh(command)
        change(self.root)
        return contents(self.root, command.made) if self.run(command.spelled(1)).code == 0 else None

    def _files(self) -> list[str]:
        return sorted(
            p.relative_to(self.root).as_posix() for p in (self.root / "out").rglob("*") if p.is_file()
        )

    def fresh(self, command: Command, mounted: str = "") -> None:
        """Make the project as it is before the command, with files of the user, and note their state.

        ``mounted``: a folder that is the root of a file system of its own, mounted by the caller.
        """
        if not (self._templates / command.name).exists():
            self.calm(command)
        if not mounted:
            _clear(self.root)
        shutil.copytree(self._templates / command.name, self.root, symlinks=True, dirs_exist_ok=True)
        before = set(state_of(self.root, set()))
        add_user_files(self.root, command)
        added = set(state_of(self.root, set())) - before
        self.old = contents(self.root, command.made)
        self.note_user_files(command, {p for p in added if any(p.startswith(f"{m}/") for m in command.made)})

    def note_user_files(self, command: Command, inside: set[str], *others: str) -> None:
        """Note the state of all files but those of the command, and of those ``inside`` what it writes."""
        self.user = User(self.root, {*command.made, "out/.datamix", *others}, inside)

    @contextmanager
    def mounted(self, command: Command, place: str) -> Iterator[Path]:
        """A fresh project in which ``place`` (empty: the project) is a file system of its own. Needs root."""
        self.calm(command)
        folder = self.root / place
        _clear(self.root)
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", folder], check=True)
        try:
            self.fresh(command, mounted=place or ".")
            yield folder
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def _clear(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@dataclass(frozen=True)
class Calm:
    """A command that nothing happened to: its calls, the content of what it made, and the files in ``out``."""

    counts: Counter[str]
    contents: dict[str, str]
    files: list[str]  # before it, where it has a set to work on


class User:
    """The files of the user, and whether they are as they were."""

    def __init__(self, root: Path, skipped: set[str], inside: set[str]) -> None:
        self._root, self._skipped, self.inside = root, skipped, inside
        self._before = self._now()

    def _now(self) -> dict[str, object]:
        inside = {name: state for name, state in state_of(self._root, set()).items() if name in self.inside}
        return {**state_of(self._root, self._skipped), **inside}

    def holds(self, name: str) -> bool:
        """Whether a file is the user's."""
        return name in self._before

    def changes(self) -> list[str]:
        """Names that are new, gone or of other content."""
        now = self._now()
        return sorted(name for name in {*now, *self._before} if now.get(name) != self._before.get(name))


def _run(words: tuple[str, ...], prepare: Callable[[], None] | None, channel: socket.socket | None) -> None:
    """In the process of a command: its whole life, with an exit as Python makes it."""
    from datamix.commands.cli import main

    sys.modules["__main__"] = types.ModuleType("__main__")  # workers import it again
    code: object = 0
    try:
        if prepare is not None:
            prepare()
        if channel is not None:
            install_filter(channel)
        main(list(words))
    except SystemExit as error:
        code = error.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    with suppress(BaseException):
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _note_modules(path: Path) -> None:
    path.write_text("\n".join(sys.modules))


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
