"""Failures of the machine: full or broken disks, limits, permissions, memory; each with advice that can help.

``failures_at`` turns those at one place into a MachineError that says which option names another place; what passes it (an
input, a place that no option names) becomes one in the command line, by ``machine_failure``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from datamix.core.errors import MachineError

_AGAIN = "Finished work is saved: then run the same command again."
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_PART_WRITTEN = ("free some space there, or raise the limit of file sizes (`ulimit -f unlimited`)", True)
_NO_THREAD = ("can't start new thread", "Failed to launch worker thread")  # Python's words and Arrow's
_ADVICE = {  # errno -> what to do, and whether another place helps
    errno.ENOSPC: ("free some space there", True),
    errno.EDQUOT: ("free some space there, or have the quota raised", True),
    errno.EIO: ("check the disk and its mount (`dmesg` shows what they reported)", True),
    errno.ENXIO: ("check the disk and its mount", True),
    errno.ENODEV: ("check the disk and its mount", True),
    errno.ESTALE: ("check the mount of this network file system", True),
    errno.ETIMEDOUT: ("check the network and the mount of this file system", True),
    errno.EMFILE: (
        "raise the limit of open files (`ulimit -n 4096`), or use fewer workers (--workers 1)",
        False,
    ),
    errno.ENFILE: ("close other programs: the whole machine has too many files open", False),
    errno.EFBIG: (
        "raise the limit of file sizes (`ulimit -f unlimited`; a file system may have its own)",
        True,
    ),
    errno.EACCES: ("check its owner and permissions (`ls -ld`)", True),
    errno.EPERM: ("check its owner, permissions and attributes (`ls -ld`, `lsattr -d`)", True),
    errno.EROFS: ("mount it writable", True),
    errno.ENOTDIR: ("move away the file that is where a folder must be", True),
    errno.EEXIST: ("move away the file, or the link that leads nowhere, that has this name", True),
    errno.ELOOP: ("remove one of the links, which lead in a circle", True),
    errno.ENOENT: ("check that the folder above it exists and takes files", True),
    errno.ENAMETOOLONG: ("use a shorter name", True),
    errno.ENOMEM: ("use fewer workers (--workers 1), or a machine with more memory", False),
    errno.EAGAIN: ("raise the limit of processes (`ulimit -u`), or use fewer workers (--workers 1)", False),
}


def files_below(folder: Path, pattern: str = "") -> list[Path]:
    """The files and links below a folder, sorted; with ``counts/*.json`` those at that depth of such names.

    Raises OSError where a folder cannot be listed: pathlib's own globs then go on without its files. None where there is no folder.
    """
    if not os.path.lexists(folder):
        return []
    parts = PurePath(pattern).parts
    found = []
    for top, folders, names in os.walk(folder, onerror=_raise):
        names += [name for name in folders if os.path.islink(os.path.join(top, name))]
        depth = len(Path(top).relative_to(folder).parts)
        if parts:
            folders[:] = [
                name for name in folders if depth + 1 < len(parts) and fnmatchcase(name, parts[depth])
            ]
            names = [name for name in names if depth + 1 == len(parts) and fnmatchcase(name, parts[depth])]
        found += [Path(top, name) for name in names]
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def advice(error: OSError, move: str = "") -> str:
    """What to do about a failure, as a sentence; ``move``: how to name another place (``choose ... with -o``)."""
    other = _PART_WRITTEN if _is_part_written(error) else ("check the disk, its limits and permissions", True)
    text, elsewhere = _ADVICE.get(error.errno or 0, other)
    return f"{text[0].upper()}{text[1:]}{f', or {move}' if move and elsewhere else ''}."


def reason(error: OSError) -> str:
    """What the system says: a few words."""
    if _is_part_written(error):
        return "A part of a file could not be written"
    return "No space left" if error.errno in _NO_SPACE else os.strerror(error.errno or 0)


@contextmanager
def failures_at(root: Path, doing: str, move: str) -> Iterator[None]:
    """Raise MachineError for failures below ``root``, and for those that name no file."""
    try:
        yield
    except OSError as error:
        name = error.filename
        named = isinstance(name, (str, bytes, os.PathLike))
        if not (error.errno in _ADVICE or _is_part_written(error)) or (named and not _is_below(name, root)):
            raise
        raise MachineError(
            f"{reason(error)} while {doing} below {root}. {advice(error, move)} {_AGAIN}"
        ) from error


def _is_part_written(error: OSError) -> bool:
    """Whether numpy says so, which gives no number: ``10000 requested and 1984 written``."""
    return error.errno is None and " requested and " in str(error)


def _is_below(name: str | bytes | os.PathLike[str], root: Path) -> bool:
    path, top = os.path.abspath(os.fsdecode(name)), os.path.abspath(root)
    return path == top or path.startswith(top.rstrip(os.sep) + os.sep)


def machine_failure(error: BaseException) -> MachineError | None:
    """The failure of the machine that an error is, if it is one."""
    if isinstance(error, OSError) and (error.errno is not None or _is_part_written(error)):
        where = f" ({error.filename})" if error.filename else ""
        return MachineError(f"The machine refused: {reason(error)}{where}. {advice(error)} {_AGAIN}")
    if isinstance(error, MemoryError):
        return MachineError(
            f"The machine has no more memory{f': {error}' if str(error) else ''}. Use fewer workers (--workers 1), raise its "
            f"limit (`ulimit -v unlimited`), or use a machine with more. {_AGAIN}"
        )
    if any(words in str(error) for words in _NO_THREAD):
        return MachineError(
            f"The machine refused to start a thread. {advice(OSError(errno.EAGAIN, ''))} {_AGAIN}"
        )
    return None
