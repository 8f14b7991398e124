"""That what a manifest lists is in the folder of its set: a set may come from a stranger."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamix.core.errors import DataError
from datamix.core.hashing import file_sha256


def check_listed(out: Path, manifest: Mapping[str, Any]) -> None:
    """Raise DataError where a listed path leads out of ``out``, by its name or through a link.

    A link to content with the listed digest may stay: snapshots of the Hub are made of such. Cost: two stats a file.
    """
    entries = manifest.get("outputs")
    if not isinstance(entries, list):
        raise DataError(
            f"{out}/manifest.json lists no outputs. It was not written by datamix: build the set again."
        )
    home = os.path.realpath(out)
    inside: dict[str, bool] = {}  # folder -> whether it is really below the set
    for entry in entries:
        name = entry.get("path") if isinstance(entry, dict) else None
        if not isinstance(name, str) or "\0" in name or os.path.isabs(name) or ".." in name.split("/"):
            raise DataError(
                f"{out}/manifest.json lists {name!r}, which is no path below it. Do not use this set."
            )
        path = os.path.join(out, name)
        folder = os.path.dirname(path)
        if folder not in inside:
            inside[folder] = _is_below(os.path.realpath(folder), home)
        if inside[folder] and not os.path.islink(path):
            continue
        if (
            not _is_below(os.path.realpath(path), home)
            and os.path.lexists(path)
            and not _has_digest(path, entry)
        ):
            raise DataError(
                f"{out}/{name} is a link that leads out of the set, to a file with other content than the manifest lists. Put the "
                "file itself there, or get the set again."
            )


def _is_below(path: str, home: str) -> bool:
    return path == home or path.startswith(home.rstrip(os.sep) + os.sep)


def _has_digest(path: str, entry: Mapping[str, Any]) -> bool:
    return (
        os.path.isfile(path)
        and os.path.getsize(path) == entry.get("bytes")
        and file_sha256(Path(path)) == entry.get("sha256")
    )
