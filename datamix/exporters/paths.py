"""Where a shard stands below its format's folder, and small files written the same everywhere."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import zstandard

TextCompression = Literal["none", "gzip", "zstd"]
_SUFFIX = {"none": "", "gzip": ".gz", "zstd": ".zst"}


def split_folder(split: str) -> str:
    """The folder of a split: ``train`` -> ``train``, ``validation/medical`` -> ``validation_medical``."""
    return split.replace("/", "_")


def shard_name(split: str, index: int, suffix: str) -> str:
    """``("train", 3, ".ds")`` -> ``train/00003.ds``."""
    return f"{split_folder(split)}/{index:05d}{suffix}"


def make_room(folder: Path, name: str) -> Path:
    """The path of ``name`` below ``folder``, its own folder made."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_json(folder: Path, name: str, value: Any) -> str:
    """Write ``value`` as indented JSON in the order given; return ``name``."""
    text = json.dumps(value, ensure_ascii=False, indent=2) + "\n"
    make_room(folder, name).write_bytes(text.encode())
    return name


def write_text(folder: Path, name: str, text: str) -> str:
    """Write ``text`` as UTF-8 with Unix line ends; return ``name``."""
    make_room(folder, name).write_bytes(text.encode())
    return name


def compressed_suffix(compression: TextCompression) -> str:
    """What a compression adds to a file's name."""
    return _SUFFIX[compression]


@contextmanager
def open_lines(path: Path, compression: TextCompression) -> Iterator[BinaryIO]:
    """A binary stream into ``path``; the same bytes in give the same file (no time, no name in its header)."""
    with path.open("wb") as raw:
        if compression == "none":
            yield raw
            return
        packed: Any
        if compression == "gzip":
            packed = gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6)
        else:
            packed = zstandard.ZstdCompressor(level=3).stream_writer(raw, closefd=False)
        with io.BufferedWriter(packed, 1 << 20) as stream:
            yield stream
