"""Who works with a cache: ``CACHE/leases`` holds one file for each running command, with a heartbeat.

A build names in its lease the results that it uses, before it looks for them; pruning leaves those alone. Either announces
itself first and looks for the other then, so one of both always sees the other: a build waits while a prune runs (which takes
seconds), a prune leaves what builds have named. No file lock is needed, which some network file systems do not have.

The holder of a lease on this machine lives while its process does (by pid and start time). Of another machine's, or another
container's, the heartbeat counts: the time of the file, by the clock of the file system that holds it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cache as once
from hashlib import sha256
from pathlib import Path

LEASES = "leases"
_BEAT_SECONDS = 5.0
DEAD_SECONDS = 60.0  # without a heartbeat
_WAIT_SECONDS = 0.05


@once
def machine_tag() -> str:
    """Eight hex digits for this boot of this machine and this namespace of pids."""
    parts = [socket.gethostname()]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        with suppress(OSError):
            parts.append(os.readlink(path) if path.endswith("pid") else Path(path).read_text())
    return sha256("\n".join(parts).encode()).hexdigest()[:8]


def process_start(pid: int) -> str:
    """When a process started, in ticks since boot: with the pid it names the process; empty where there is none.

    One that has ended counts as none, also where its parent does not ask for its exit code, as in many containers.
    """
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in ("Z", "X") else fields[19]
    if Path("/proc/self/stat").exists():
        return ""
    try:  # a system without /proc
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except OSError:
        pass
    return "0"


class Lease:
    """One command's announcement in a cache or a folder; ``purpose`` is ``build``, ``worker``, ``prune`` or ``synth``."""

    def __init__(self, cache: Path, purpose: str) -> None:
        self._folder = cache / LEASES
        self._folder.mkdir(parents=True, exist_ok=True)
        pid = os.getpid()
        name = f"{purpose}-{machine_tag()}-{pid}-{process_start(pid)}-{secrets.token_hex(4)}"
        self._path = self._folder / name
        self._path.touch()
        self._named: set[str] = set()
        self.is_lost = False  # others took this process for dead
        self._ended = threading.Event()
        threading.Thread(target=self._beat, name="lease", daemon=True).start()

    @property
    def id(self) -> str:
        """The name of this lease."""
        return self._path.name

    def is_beating(self, name: str) -> bool:
        """Whether the lease ``name`` of this cache has a heartbeat, by the clock of the file system: a stopped process has none."""
        path = self._folder / name
        return path.exists() and self._is_alive(path) and self.age_of(path) < DEAD_SECONDS

    def beating(self) -> list[str]:
        """The names of all other leases that have a heartbeat."""
        return [path.name for path in self.others() if self.is_beating(path.name)]

    def name(self, keys: Iterable[str]) -> None:
        """Name results before they are looked for, and wait while a prune runs that may not have seen the names."""
        new = [key for key in keys if key not in self._named]
        if not new:
            return
        self._named.update(new)
        with self._path.open("a", encoding="ascii") as stream:
            stream.write("".join(f"{key}\n" for key in new))
        while any(path.name.startswith("prune-") for path in self.others()):
            time.sleep(_WAIT_SECONDS)

    def others(self) -> list[Path]:
        """Leases of others that are alive; those of the dead are removed."""
        alive = []
        for path in self._folder.iterdir():
            if path != self._path:
                if self._is_alive(path):
                    alive.append(path)
                else:
                    path.unlink(missing_ok=True)
        return alive

    def named_by_builds(self) -> tuple[int, set[str]]:
        """How many builds are running, and every result that they have named."""
        others = [path for path in self.others() if path.name.startswith("build-")]
        keys: set[str] = set()
        for path in others:
            with suppress(FileNotFoundError):
                keys.update(path.read_text(encoding="ascii").split())
        return len(others), keys

    def close(self) -> None:
        """Withdraw it."""
        self._ended.set()
        self._path.unlink(missing_ok=True)

    def _is_alive(self, path: Path) -> bool:
        _, tag, pid, start, _ = path.name.split("-") if path.name.count("-") == 4 else ("", "", "", "", "")
        if tag == machine_tag():
            return process_start(int(pid)) == start
        return self.age_of(path) < DEAD_SECONDS

    def age_of(self, path: Path) -> float:
        """Seconds since a file of this file system was touched, by its clock; infinite where it is gone."""
        with suppress(OSError):
            self._touch()
            return self._path.stat().st_mtime - path.stat().st_mtime
        return float("inf")

    def _touch(self) -> None:
        try:
            os.utime(self._path)
        except FileNotFoundError:  # stopped for a minute, and taken for dead by others
            if not self._ended.is_set():
                self.is_lost = True
                self._path.write_text("".join(f"{key}\n" for key in sorted(self._named)), encoding="ascii")

    def _beat(self) -> None:
        while not self._ended.wait(_BEAT_SECONDS):
            with suppress(OSError):
                self._touch()


def sweep(paths: Iterable[Path], lease: Lease) -> None:
    """Remove those of the half-written ``paths`` (named by ``partial_name``) whose process no longer runs.

    Another machine's are removed where it holds no lease; so are those of 0.1, which named no machine.
    """
    tags = {path.name.split("-")[1] for path in lease.others()} | {machine_tag()}
    for path in paths:
        parts = path.name.split("-")
        tag, pid, start = parts[1:4] if len(parts) == 5 else ("", "0", "")
        if tag not in tags or (tag == machine_tag() and process_start(int(pid)) != start):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def partial_name(name: str) -> str:
    """A name for something half-written that tells whether the process that writes it still runs."""
    pid = os.getpid()
    return f"{name[:16].replace('-', '_')}-{machine_tag()}-{pid}-{process_start(pid)}-{secrets.token_hex(4)}"
