"""Files that a command writes for the user: checked before work, complete when they appear, never in place of an input.

Each is written beside its target under a unique name that begins with ``.datamix-``, flushed to the disk, and renamed when all
are complete. A process killed anywhere leaves the old target intact; its drafts are removed by the next run.
"""

from __future__ import annotations

import fcntl
import glob
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from datamix.core.errors import MachineError, RecipeError
from datamix.core.machine import advice, reason
from datamix.pipeline.store import sync

_NO_SPACE = (28, 122)  # ENOSPC, EDQUOT
_NO_LINKS = (1, 38, 95)  # EPERM, ENOSYS, ENOTSUP: a file system without hard links
# Characters of a target's name that its draft bears: a name of 255 bytes leaves no room for more.
_NAME_END = 40
_PAGE_HEAD_BYTES = 512  # of a page: its title says whose it is


def check_outputs(
    outputs: Sequence[Path], inputs: Sequence[str], overwrite: bool, new_folder: Path | None = None
) -> None:
    """Raise RecipeError where an output is an input (by any name or link), occurs twice, or exists without ``overwrite``.

    The folder of each must exist, but for ``new_folder``.
    """
    if new_folder is not None and new_folder.is_symlink() and not new_folder.exists():
        raise RecipeError(
            f"{new_folder}: is a link that leads nowhere. Choose another name, or remove the link."
        )
    read = {identity: path for path in inputs if (identity := _identity(path)) is not None}
    real = [os.path.realpath(output) for output in outputs]
    for output, place in zip(outputs, real, strict=True):
        if "://" in str(output) or re.match(r"[A-Za-z0-9+.-]+:/", str(output)):
            raise RecipeError(
                f"{output}: only local files are written. Name a local path, and upload it afterwards."
            )
        identity = _identity(str(output))
        source = read.get(identity) if identity else None
        if source is not None:
            raise RecipeError(
                f"{output}: is the input {source} itself, by this or another name. Choose another name, outside the folders that "
                "are read."
            )
        if real.count(place) > 1:
            raise RecipeError(f"{output}: two outputs have this name. Choose another name with -o.")
        if identity and not output.is_file():
            raise RecipeError(f"{output}: exists and is no regular file. Choose another name.")
        folder = Path(place).parent
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        if not nearest.is_dir():
            raise RecipeError(f"{output}: {nearest} is no folder. Choose another name.")
        if nearest != folder and output.parent != new_folder:
            raise RecipeError(f"{output}: there is no folder {folder}. Create it first.")
        if os.path.lexists(output) and not overwrite:
            raise RecipeError(f"{output} exists. Choose another name, or replace it with --overwrite.")


def _identity(path: str) -> tuple[int, int] | None:
    """Device and inode: equal for hard links, symbolic links and other spellings of one file, ``file://`` too."""
    try:
        status = os.stat(re.sub("^(file|local)://", "", path.split("::")[-1]) if "://" in path else path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


@contextmanager
def complete_files(outputs: Sequence[Path], overwrite: bool) -> Iterator[list[Path]]:
    """Names to write instead of ``outputs``, in their folders; they become the outputs where nothing fails.

    What is written beside a draft under its name and a suffix is removed at the end. A link is followed: the file that it names
    is replaced. Raises MachineError where the disk is full or the folder may not be written, RecipeError where an output
    appeared meanwhile and ``overwrite`` is not set.
    """
    finals = [Path(os.path.realpath(output)) for output in outputs]
    drafts: list[Path] = []
    with ExitStack() as locks:
        try:
            for final in finals:
                _remove_strays(final)
                name = f".datamix-{os.getpid()}-{secrets.token_hex(4)}-{final.name[-_NAME_END:]}"
                drafts.append(final.with_name(name))
                handle = os.open(drafts[-1], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
                locks.callback(os.close, handle)
                with suppress(
                    OSError
                ):  # a file system without locks; else how a later run knows what is in use
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield drafts
            for draft, final in zip(drafts, finals, strict=True):
                with suppress(OSError):
                    draft.chmod(stat.S_IMODE(final.stat().st_mode))
            sync(drafts)
            _publish(drafts, finals, overwrite)
            sync({final.parent for final in finals})
        except OSError as error:
            if error.errno in _NO_SPACE:
                raise MachineError(
                    f"No space left while writing {outputs[0]}. Nothing was replaced: free some space, or choose another place."
                ) from error
            if error.filename is None or Path(str(error.filename)).name.startswith(".datamix-"):
                raise MachineError(
                    f"{outputs[0]}: cannot be written there ({reason(error)}). {advice(error, 'choose another folder')}"
                ) from error
            raise
        finally:
            for draft in drafts:
                with suppress(OSError):  # a disk that fails or is read-only: what failed first is the error
                    _remove(draft)


def _publish(drafts: Sequence[Path], finals: Sequence[Path], overwrite: bool) -> None:
    """Give drafts their names; without ``overwrite`` a file that took a name meanwhile stays, and none of them appears."""
    linked: list[Path] = []
    for draft, final in zip(drafts, finals, strict=True):
        if overwrite:
            draft.replace(final)
            continue
        try:
            os.link(draft, final)
            linked.append(final)
        except FileExistsError as error:
            for path in linked:
                path.unlink(missing_ok=True)
            raise RecipeError(
                f"{final} appeared while this command ran, and was not replaced. Choose another name, or replace it with "
                "--overwrite."
            ) from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            draft.replace(final)


def _remove_strays(final: Path) -> None:
    """Remove drafts of this target whose process was killed: here by its pid, in another container by the lock."""
    for path in final.parent.glob(".datamix-*-*-*"):
        match = re.fullmatch(r"\.datamix-(\d+)-[0-9a-f]{8}-(.+)", path.name)
        if not match or match[2] != final.name[-_NAME_END:]:
            continue
        try:
            os.kill(int(match[1]), 0)
        except ProcessLookupError:
            with suppress(OSError), path.open("rb") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
        except OSError:  # it lives, and belongs to somebody else
            continue


def _remove(draft: Path) -> None:
    """Remove a draft and, before it, what was written beside it under its name and a suffix."""
    for path in draft.parent.glob(f"{glob.escape(draft.name)}.*"):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    draft.unlink(missing_ok=True)


def write_page(path: Path, page: str, inputs: Sequence[str]) -> None:
    """Write a page where no file is, or one of our pages. Raises RecipeError for any other file."""
    is_ours = False
    with suppress(OSError):
        head = path.read_bytes()[:_PAGE_HEAD_BYTES]
        is_ours = head.lstrip().startswith(b"<!doctype html>") and b"datamix" in head
    try:
        check_outputs([path], inputs, overwrite=is_ours)
    except RecipeError as error:
        raise RecipeError(str(error).replace(", or replace it with --overwrite", "")) from None
    with complete_files([path], is_ours) as [draft]:
        draft.write_text(page, encoding="utf-8")
