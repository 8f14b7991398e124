"""``OUT/.building``: work in progress, marked as ours, locked by the process that writes OUT.

The lock is advisory (``flock``) on a file inside, checked by inode: a folder that was taken away and made again is another
lock. Links inside are unlinked, never followed. A build by workers on other machines also holds a lease there, with a heartbeat,
and needs no lock where the file system has none.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from datamix.core.errors import DatamixError, MachineError, RecipeError
from datamix.core.machine import advice, reason
from datamix.pipeline.leases import DEAD_SECONDS, LEASES, Lease, process_start

BUILDING = ".building"
OWNED = "owned.json"  # there while files are moved into place
_MARKER = "datamix"
_MARKER_TEXT = (
    "Work in progress of a datamix build. Safe to delete while no build runs; it costs time only.\n"
)
_LOCK = "lock"


@contextmanager
def hold_folder(out: Path, shared: bool = False) -> Iterator[Lease | None]:
    """Lock OUT for this process; ``.building`` is there meanwhile. ``shared``: by a lease too, which other machines see.

    A failure that leaves no work in ``.building`` takes away the folders that were made for it. Raises RecipeError with the
    pid of the process, or the lease of the build, that holds OUT, MachineError where OUT cannot be written.
    """
    created = make_building(out)
    handle = _locked(out, shared)
    try:
        lease = _leased(out, shared)
    except DatamixError:
        os.close(handle)
        raise
    try:
        yield lease
    except DatamixError:
        if not any((out / BUILDING).glob("??/*")) and not (out / BUILDING / OWNED).exists():
            remove_building(out)
            for folder in reversed(created):
                with suppress(OSError):
                    folder.rmdir()
        raise
    finally:
        if lease is not None:
            lease.close()
        os.close(handle)


def _leased(out: Path, shared: bool) -> Lease | None:
    """The lease of this build. Raises RecipeError where another build holds one that beats."""
    building = out / BUILDING
    if not shared and not (building / LEASES).is_dir():
        return None
    lease = Lease(building, "build")
    if others := lease.others():
        age = lease.age_of(others[0])
        lease.close()
        raise RecipeError(
            f"Another build (lease {others[0].name}, heartbeat {max(0, age):.0f} s ago) is writing {out}. Wait for it, stop it, or "
            f"choose another folder with -o; where it died with its machine, run this again when {DEAD_SECONDS:.0f} s have passed "
            "since its last heartbeat."
        )
    return lease


def remove_building(out: Path) -> None:
    """Remove the work in progress, all of it ours; call it only while OUT is locked.

    Marker and lock go last: a process killed before leaves a folder that the next build recognises.
    """
    building = out / BUILDING
    if not is_marked(building):
        return
    with suppress(OSError):
        for path in list(building.iterdir()):
            if path.name not in (_MARKER, _LOCK):
                _remove(path)
        if {p.name for p in building.iterdir()} <= {_MARKER, _LOCK}:
            for name in (_MARKER, _LOCK):
                (building / name).unlink(missing_ok=True)
            building.rmdir()


def _remove(path: Path) -> None:
    """Remove a file, a link or a folder with what is in it; no link is followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def make_building(out: Path) -> list[Path]:
    """Make OUT and its marked ``.building``; return the folders above it that did not exist, outermost first."""
    missing = [p for p in (out, *out.parents) if not p.exists()][::-1]
    building = out / BUILDING
    failed: OSError | None = None
    for _ in range(100):  # a build that ends may take the folder away meanwhile
        try:
            building.mkdir(parents=True, exist_ok=True)
            if is_marked(building):
                _mark(building / _MARKER)
                for path in (*building.iterdir(), *building.glob("??/*")):
                    if path.is_symlink():
                        path.unlink()
                return missing
            failed = None
        except (FileNotFoundError, FileExistsError) as error:
            failed = error
        except OSError as error:
            raise _unwritable(out, error) from error
    if failed is not None:
        raise _unwritable(out, failed)
    raise RecipeError(f"{building} was not made by datamix. Choose another folder with -o, or move it away.")


def _unwritable(out: Path, error: OSError) -> MachineError:
    return MachineError(
        f"{out} cannot be written: {reason(error)}. {advice(error, 'choose another folder with -o')}"
    )


def _mark(marker: Path) -> None:
    """Write the marker, empty before and whole after one call: others look at it meanwhile.

    A disk that is full, or a limit, may let a part through; the next try then fails, and a later run completes it.
    """
    handle = os.open(marker, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        text = _MARKER_TEXT.encode()
        if (written := len(os.pread(handle, len(text), 0))) < len(text):
            while written < len(text):
                written += os.pwrite(handle, text[written:], written)
            os.fsync(handle)
    finally:
        os.close(handle)


def is_marked(building: Path) -> bool:
    """Whether a build may work in ``.building``: it carries our marker, is as a kill may leave it, or does not exist.

    Read again before it is denied: a build that ends may take the folder away between two looks.
    """
    return any(_is_marked(building) or not os.path.lexists(building) for _ in range(10))


def _is_marked(building: Path) -> bool:
    if building.is_symlink() or not building.is_dir():
        return False
    if carries_marker(building):
        return True
    with suppress(OSError):
        names = {p.name for p in building.iterdir()}
        marker = _MARKER not in names or _MARKER_TEXT.encode().startswith(_content(building / _MARKER))
        lock = _LOCK not in names or (_content(building / _LOCK) or b"0").isdigit()
        return names <= {_MARKER, _LOCK} and marker and lock
    return False


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() and not path.is_symlink() else b"a link or folder"


def carries_marker(building: Path) -> bool:
    """Whether ``.building`` holds our marker; 0.1 wrote none, but a lock among results by key."""
    if building.is_symlink() or not building.is_dir():
        return False
    with suppress(OSError):
        if os.path.lexists(building / _MARKER):
            return _content(building / _MARKER) == _MARKER_TEXT.encode()
        names = {p.name for p in building.iterdir()}
        work = names - {_LOCK, "partial"}
        return _LOCK in names and bool(work) and all(len(name) == 2 for name in work)
    return False


def _locked(out: Path, shared: bool) -> int:
    path = out / BUILDING / _LOCK
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError:  # a build that ended took the folder away
            make_building(out)
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                if shared:  # the lease decides
                    return handle
                os.close(handle)
                raise MachineError(
                    f"{out} is on a file system that has no file locks ({error.strerror}), as Lustre and NFS often are "
                    "mounted; a build needs one to keep a second build out. Choose a folder on another file system with -o "
                    "(the set can be copied afterwards), or mount this one with locks (Lustre: -o flock; NFS: with lockd)."
                ) from error
            pid = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            if shared and not (pid.isdigit() and process_start(int(pid))) and _had_lease(out):
                return handle  # of a machine that died: its lease decides
            os.close(handle)
            raise RecipeError(
                f"Another build (process {pid}) is writing {out}. Wait for it, stop it, or choose another folder with -o."
            ) from None
        try:
            if os.stat(path).st_ino == os.fstat(handle).st_ino:
                _mark(out / BUILDING / _MARKER)  # the build that ended may have removed it before its lock
                break
        except FileNotFoundError:
            pass
        except OSError as error:
            os.close(handle)
            raise _unwritable(out, error) from error
        os.close(handle)  # the build that locked it removed its folder meanwhile
        make_building(out)
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)
    return handle


def _had_lease(out: Path) -> bool:
    with suppress(OSError):
        return any((out / BUILDING / LEASES).iterdir())
    return False


def staging(out: Path) -> Path:
    """An empty folder in ``.building`` where a set, or further formats of one, are completed."""
    folder = out / BUILDING / "new"
    _remove(folder)
    folder.mkdir()
    return folder
