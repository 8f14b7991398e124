"""``OUT/.building``: work in progress, marked as ours, locked by the process that writes OUT.

The lock is advisory (``flock``) on a file inside, checked by inode: a folder that was taken away and made again is another
lock.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from datamix.core.errors import DatamixError, RecipeError

BUILDING = ".building"
OWNED = "owned.json"  # there while files are moved into place
_MARKER = "datamix"
_MARKER_TEXT = (
    "Work in progress of a datamix build. Safe to delete while no build runs; it costs time only.\n"
)


@contextmanager
def hold_folder(out: Path) -> Iterator[None]:
    """Lock OUT for this process; ``.building`` is there meanwhile.

    A failure that leaves no work in ``.building`` takes away the folders that were made for it. Raises RecipeError with the
    pid of the process that holds OUT.
    """
    created = _make_building(out)
    handle = _locked(out)
    try:
        yield
    except DatamixError:
        if not any((out / BUILDING).glob("??/*")) and not (out / BUILDING / OWNED).exists():
            remove_building(out)
            for folder in reversed(created):
                with suppress(OSError):
                    folder.rmdir()
        raise
    finally:
        os.close(handle)


def remove_building(out: Path) -> None:
    """Remove the work in progress, which is ours whole; call it only while OUT is held."""
    if is_marked(out / BUILDING):
        shutil.rmtree(out / BUILDING, ignore_errors=True)


def _make_building(out: Path) -> list[Path]:
    """Make OUT and its marked ``.building``; return the folders above it that did not exist, outermost first."""
    missing = [p for p in (out, *out.parents) if not p.exists()][::-1]
    try:
        (out / BUILDING).mkdir(parents=True, exist_ok=True)
        if is_marked(out / BUILDING):
            (out / BUILDING / _MARKER).write_text(_MARKER_TEXT, encoding="utf-8")
    except OSError as error:
        raise RecipeError(
            f"{out} cannot be written: {error.strerror or error}. Choose another folder with -o, or check permissions and space."
        ) from error
    if not is_marked(out / BUILDING):
        raise RecipeError(
            f"{out / BUILDING} was not made by datamix. Choose another folder with -o, or move it away."
        )
    return missing


def is_marked(building: Path) -> bool:
    """Whether ``.building`` is a folder of ours, or an empty one; 0.1 wrote no marker, but a lock among results by key."""
    if building.is_symlink() or not building.is_dir():
        return False
    names = {p.name for p in building.iterdir()}
    if _MARKER in names:
        with suppress(OSError, ValueError):
            return (building / _MARKER).read_text(encoding="utf-8") in (_MARKER_TEXT, "")
        return False
    return not names or ("lock" in names and all(len(n) == 2 or n in ("lock", "partial") for n in names))


def _locked(out: Path) -> int:
    path = out / BUILDING / "lock"
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.read(handle, 32).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise RecipeError(
                f"Another build (process {pid}) is writing {out}. Wait for it, stop it, or choose another folder with -o."
            ) from None
        with suppress(OSError):
            if os.stat(path).st_ino == os.fstat(handle).st_ino:
                break
        os.close(handle)  # the build that held it took its folder away meanwhile
        _make_building(out)
    os.ftruncate(handle, 0)
    os.pwrite(handle, str(os.getpid()).encode(), 0)
    return handle


def staging(out: Path) -> Path:
    """An empty folder in ``.building`` where a set, or further formats of one, are completed."""
    folder = out / BUILDING / "new"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder
