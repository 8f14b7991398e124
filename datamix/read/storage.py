"""Open stored bytes: local files by plain ``open``, URLs (``hf://``, ``s3://``, ``https://``) by fsspec.

Local paths never touch fsspec, so that ten thousand small files cost ten thousand ``open`` calls and no
more. Whatever a storage throws becomes one ``DataError`` with credentials masked.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

from datamix.core.errors import DataError, DatamixError, mask_secrets, shown_name

BLOCK_BYTES = 4 << 20  # one read
_VALIDATORS = ("etag", "e_tag", "lastmodified", "last_modified", "mtime", "created", "blob_id", "md5")


def is_remote(path: str) -> bool:
    """Whether ``path`` is a URL: ``hf://datasets/a/b/c.jsonl``, ``memory://x``, ``zip://a.csv::b.zip``."""
    return "://" in path


def is_special(path: str) -> bool:
    """Whether a local path is neither a file nor a folder: opening a pipe waits for its writer."""
    try:
        return _is_special(os.stat(path))
    except (OSError, ValueError):
        return False


def _is_special(status: os.stat_result) -> bool:
    return not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode)


def _special(path: str) -> DataError:
    return DataError(f"{path}: is a pipe or a device, not a file. Save what it gives to a file.")


State = tuple[int, ...]  # as ``file_state`` gives it; empty: not known


def open_file(path: str, state: State = ()) -> BinaryIO:
    """Open stored bytes for reading, unbuffered where they are local.

    With a ``state``, what is read is what had it when it was scanned: the open descriptor is compared with
    it at the beginning and at the end, so that a file that was swapped meanwhile, and put back, is noticed.
    Raises DataError where it differs.
    """
    if not is_remote(path):
        if is_special(path):
            raise _special(path)
        return cast(BinaryIO, _Scanned(path, state) if state else open(path, "rb", buffering=0))
    filesystem, name = filesystem_of(path)
    return cast(BinaryIO, filesystem.open(name, "rb"))


class _Scanned(io.FileIO):
    """A local file whose descriptor must have a known state when it is opened and when it is closed."""

    def __init__(self, path: str, state: State) -> None:
        super().__init__(path, "rb")
        self._state = state
        try:
            check_unchanged(path, state, os.fstat(self.fileno()))
        except DataError:
            super().close()
            raise

    def close(self) -> None:
        if self.closed:
            return
        status = os.fstat(self.fileno())
        super().close()
        check_unchanged(str(self.name), self._state, status)


def check_unchanged(path: str, state: State, status: os.stat_result | None = None) -> None:
    """Raise DataError where a file (with a ``status``: the open one) is not what it was when it was scanned."""
    if state and (file_state(path) if status is None else _local_state(status)) != tuple(state):
        raise DataError(
            f"{shown_name(path)} changed while it was being read. Nothing built from it can be trusted: wait until "
            "it is written, and run the same command again."
        )


def _local_state(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def filesystem_of(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of a URL, and the path inside it.

    Raises DataError where the scheme is unsupported.
    """
    import fsspec

    try:
        return cast(tuple[Any, str], fsspec.core.url_to_fs(url))
    except ValueError as error:
        raise DataError(
            f"{shown_name(url)}: unsupported URL scheme: {_one_line(error, url)}. "
            "Known ones begin with hf://, https://, s3://, gs:// and whatever else fsspec lists."
        ) from _cause(error, url)


def file_state(path: str) -> tuple[int, int, int, int]:
    """Integers that change when a file's content may have changed.

    Local: size in bytes, mtime_ns, ctime_ns, inode. Remote: size, a 63-bit hash of what the store gives
    as its version (ETag, last-modified, blob id, ...; 0 where it gives none), 0, 0.

    Raises DataError where the file cannot be reached.
    """
    with explained(path):
        if not is_remote(path):
            status = os.stat(path)
            if _is_special(status):
                raise _special(path)
            return _local_state(status)
        filesystem, name = filesystem_of(path)
        known = {str(k).lower(): str(v) for k, v in filesystem.info(name).items()}
        text = "\n".join(f"{k}={known[k]}" for k in _VALIDATORS if known.get(k, "None") != "None")
        version = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1 if text else 0
        size = known.get("size", "None")
        return int(size) if size.isdigit() else 0, version, 0, 0


def sha256_of(path: str, state: State = ()) -> str:
    """sha256 (64 hex digits) of the bytes as they are stored, still compressed; streamed.

    Raises DataError where the file cannot be read.
    """
    digest = hashlib.sha256()
    with explained(path), open_file(path, state) as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def size_of(path: str, stream: BinaryIO) -> int:
    """Stored bytes of an open file."""
    if not is_remote(path):
        return os.fstat(stream.fileno()).st_size
    size = getattr(stream, "size", None)
    if isinstance(size, int):
        return size
    return file_state(path)[0]


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn what a storage or a decompressor throws into one ``DataError`` that names the file."""
    try:
        yield
    except DatamixError:
        raise
    except Exception as error:
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        match error:
            case FileNotFoundError():
                problem = "there is no such file. Check the path in the recipe."
            case IsADirectoryError():
                problem = "is a folder where a file was expected."
            case PermissionError():
                problem = f"may not be read ({error.strerror}). Fix its permissions."
            case OSError() if not is_remote(path):
                problem = f"could not be read: {_one_line(error, path)}."
            case ImportError() if is_remote(path):
                problem = (
                    f"this kind of address needs a package that is not installed: {_one_line(error, path)}. "
                    "Install it, or download the file and name the local copy."
                )
            case _ if is_remote(path) and (not kind or type(error).__module__ != "builtins"):
                problem = (
                    f"could not be read: {kind}{_one_line(error, path)}. Check the address and the connection, "
                    "or download the file and name the local copy."
                )
            case _:
                raise
        raise DataError(f"{shown_name(path)}: {problem}") from _cause(error, path)


def _cause(error: BaseException, path: str) -> BaseException | None:
    """The error for a traceback; None where it quotes a secret of ``path`` that stays unmasked."""
    text = mask_secrets("".join(traceback.format_exception(error)))
    return error if mask_secrets(text, path) == text else None


def _one_line(error: BaseException, path: str) -> str:
    text = mask_secrets(" ".join(str(error).split()), path)
    return text.rstrip(".")[:300] or type(error).__name__
