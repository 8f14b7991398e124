"""Files that a command writes for the user: checked before work, complete when they appear, never in place of an input.

Each is written beside its target under a name of ours that nobody else has, flushed to the disk, and renamed when all of them
are complete. A process killed anywhere leaves the old target whole; its stray file is removed by the next run.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from datamix.core.errors import MachineError, RecipeError
from datamix.pipeline.store import sync

_NO_SPACE = (28, 122)  # ENOSPC, EDQUOT


def check_outputs(outputs: Sequence[Path], inputs: Sequence[str], overwrite: bool) -> None:
    """Raise RecipeError where an output is an input (by any name or link), stands twice, or exists unasked."""
    read = {identity: path for path in inputs if (identity := _identity(path)) is not None}
    real = [os.path.realpath(output) for output in outputs]
    for output, place in zip(outputs, real, strict=True):
        if "://" in str(output) or re.match(r"[a-z0-9]+:/", str(output)):
            raise RecipeError(
                f"{output}: only local files are written. Name a local path, and upload it afterwards."
            )
        identity = _identity(place)
        source = read.get(identity) if identity else None
        if source is not None:
            raise RecipeError(
                f"{output}: is the input {source} itself, by this or another name. Choose another name, outside the folders that "
                "are read."
            )
        if real.count(place) > 1:
            raise RecipeError(f"{output}: two outputs have this name. Choose another name with -o.")
        if not Path(place).parent.is_dir():
            raise RecipeError(f"{output}: there is no folder {Path(place).parent}. Create it first.")
        if os.path.lexists(place) and not stat.S_ISREG(os.lstat(place).st_mode):
            raise RecipeError(f"{output}: exists and is no regular file. Choose another name.")
        if os.path.lexists(output) and not overwrite:
            raise RecipeError(f"{output} exists. Choose another name, or replace it with --overwrite.")


def _identity(path: str) -> tuple[int, int] | None:
    """Device and inode: equal for hard links, symbolic links and other spellings of one file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


@contextmanager
def complete_files(outputs: Sequence[Path]) -> Iterator[list[Path]]:
    """Names to write instead of ``outputs``, in their folders; they become the outputs where nothing goes wrong.

    Raises MachineError where the disk is full. A link is followed: the file that it names is replaced.
    """
    finals = [Path(os.path.realpath(output)) for output in outputs]
    for final in finals:
        _remove_strays(final)
    drafts = [f.with_name(f".datamix-{os.getpid()}-{secrets.token_hex(4)}-{f.name}") for f in finals]
    try:
        for draft in drafts:
            os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield drafts
        for draft, final in zip(drafts, finals, strict=True):
            with suppress(OSError):
                draft.chmod(stat.S_IMODE(final.stat().st_mode))
        sync(drafts)
        for draft, final in zip(drafts, finals, strict=True):
            draft.replace(final)
        sync({final.parent for final in finals})
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise MachineError(
            f"No space left while writing {outputs[0]}. Nothing was replaced: free some space, or choose another place."
        ) from error
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)


def _remove_strays(final: Path) -> None:
    """Remove drafts of this target whose process was killed."""
    for path in final.parent.glob(".datamix-*-*-*"):
        match = re.fullmatch(r"\.datamix-(\d+)-[0-9a-f]{8}-(.+)", path.name)
        if match and match[2] == final.name:
            try:
                os.kill(int(match[1]), 0)
            except ProcessLookupError:
                path.unlink(missing_ok=True)
            except OSError:
                continue
