"""Run commands in a project that is made anew for each fault, and judge what a fault did.

Commands run in forks of this process, which has imported everything: 0.1 to 0.5 s each instead of 1 to 2. Code under test is that of
the command line, from its arguments to its exit code.
"""

from __future__ import annotations

import atexit
import fcntl
import importlib
import json
import os
import pkgutil
import re
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

from faults.commands import BUILD, Command
from faults.project import add_user_files, contents, make_project, state_of, unfinished
from faults.syscalls import Watch, install_filter

import datamix

TIMEOUT = 120.0
OTHER_CACHE = "out/cache"
ELSEWHERE = "out/other"  # where a rerun writes that does what an error advises
_NAMES_PLACE = re.compile("with -o|[Cc]hoose another (name|folder|place)")
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


def finish(bench: Bench, command: Command, words: tuple[str, ...] | None = None) -> str:
    """Run the command again, do what its error advises, and say what is wrong then: empty where all is well."""
    words, steps = words or command.spelled(1), list[str]()
    for _ in range(4):
        ended = bench.run(words, is_watched=False)
        steps.append(f"{' '.join(words)}: {ended.code} {ended.said.strip()[-600:]}")
        if ended.code == 0:
            break
        if fault := complaint(ended):
            return f"{fault} on the rerun: {steps}"
        if ended.code == 2 and "--overwrite" in ended.said and "--overwrite" not in words:
            words = (*words, "--overwrite")
        elif ended.code == 3 and "datamix build" in ended.said:
            built = bench.run((*BUILD, "--workers", "1"), is_watched=False)
            steps.append(f"build: {built.code} {built.said.strip()[-600:]}")
        elif (
            ended.code in (2, 4)
            and "-o" in words
            and ELSEWHERE not in words
            and _NAMES_PLACE.search(ended.said)
        ):
            words = tuple(
                ELSEWHERE if before == "-o" else word
                for before, word in zip(("", *words), words, strict=False)
            )
        else:
            return f"the advice does not help: {steps}"
    else:
        return f"does not get there: {steps}"
    place = command.words[command.words.index("-o") + 1] if ELSEWHERE in words else ""
    if different := differences(bench, command, place):
        return f"other bytes after a rerun: {different}: {steps}"
    if left := unfinished(bench.root):
        return f"left behind: {left[:5]}: {steps}"
    if changed := [name for name in bench.user.changes() if not name.startswith((ELSEWHERE, OTHER_CACHE))]:
        return f"files of the user changed: {changed[:5]}: {steps}"
    return ""


def half_done(bench: Bench, command: Command) -> str:
    """What a stopped command left that is neither as before nor whole: a file, or a set whose manifest lists what is not there."""
    calm, now = bench.calm(command).contents, contents(bench.root, command.made)
    for made in command.made:
        manifest = bench.root / made / "manifest.json"
        if manifest.is_file():
            listed = {
                f"{made}/{e['path']}": e["sha256"] for e in json.loads(manifest.read_bytes())["outputs"]
            }
            if broken := [name for name, digest in listed.items() if now.get(name) != digest]:
                return f"a manifest over files that are not there: {broken[:5]}"
    is_set = any(name.endswith("/manifest.json") for name in calm)
    half = [
        name
        for name, digest in now.items()
        if not is_set and "/.datamix-" not in name and digest not in (bench.old.get(name), calm.get(name))
    ]
    return f"half-written: {half}" if half else ""


def differences(bench: Bench, command: Command, moved_from: str = "") -> list[str]:
    """Files that are not as the command makes them, where it made them at ``moved_from`` or elsewhere instead.

    Files of ours that somebody changed may be there under a name with ``.yours``, and drafts: ``unfinished`` looks for those.
    """
    place = moved_from or ELSEWHERE
    made = tuple(name.replace(place, ELSEWHERE, 1) for name in command.made)
    here = {name.replace(ELSEWHERE, place, 1): digest for name, digest in contents(bench.root, made).items()}
    calm = bench.calm(command).contents
    different = {name for name in {*here, *calm} if here.get(name) != calm.get(name)}
    different -= bench.user.inside if moved_from else set()  # they stay where they were
    return sorted(name for name in different if ".yours" not in name and "/.datamix-" not in name)[:5]


def complaint(ended: Ended) -> str:
    """What is wrong with how a command ended: a bug of ours, a traceback, no word, more than a paragraph."""
    said = re.sub(r"^(?:\d+/\d+ )?\w+ +done in .*$\n?", "", ended.said, flags=re.MULTILINE).strip()
    if "HANGS" in said:
        return "hangs"
    if "Traceback" in said:
        return "a traceback"
    if ended.code < 0:
        return f"died of signal {-ended.code}"
    if ended.code not in (0, 1, 2, 3, 4, 129, 130, 143):
        return f"exit code {ended.code}"
    if ended.code and "datamix: " not in said:
        return "no error message"
    return ""
