"""Paths of a recipe to files, in one order on every machine: sorted by their UTF-8 bytes, each once.

Of a folder that ``datamix synth`` wrote its records are taken. A plain file is taken as it is named. A glob (``**`` too) matches files only. A folder is walked, links
followed, hidden names skipped; what is in a data folder but is not data (a README, a licence, the
bookkeeping of ``save_to_disk`` and of LLaMA-Factory) is skipped where data is beside it. One listing a
folder; no file is opened.

What a set says of its inputs must not depend on where they or the recipe are: ``name_files`` gives files the names that
manifests have, and their order in a source; ``published_path`` is a path of a recipe without its absolute part.
"""

from __future__ import annotations

import difflib
import fnmatch
import glob
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from datamix.core.errors import RecipeError, mask_secrets, mask_url
from datamix.read.storage import explained, filesystem_of, is_remote, is_special

_MAGIC = re.compile(r"[*?\[]")
_ELSEWHERE = "<SOURCE>"  # in manifests: the absolute part of a path of the recipe
_NOT_DATA = re.compile(
    r"(readme|licen[cs]e|copying|notice|changelog|citation)([._-][a-z]{2}(-[a-z]+)?)?(\.(md|txt|rst|cff))?$|"
    r"(dataset_infos?|state|dataset_dict)\.json$",
    re.IGNORECASE,
)
_DATA = re.compile(
    r"\.(jsonl|ndjson|json|csv|tsv|parquet|arrow)(\.(gz|gzip|zst|zstd|xz|bz2|lz4))?$", re.IGNORECASE
)


def find(paths: Sequence[str], base: str) -> list[str]:
    """Files that ``paths`` mean: globs, folders, plain files (relative to ``base``) and fsspec URLs.

    Raises RecipeError where one of them matches nothing, naming it and the nearest name that exists.
    """
    files: set[str] = set()
    for path in paths:
        full = os.path.normpath(os.path.join(base, os.path.expanduser(path)))
        if is_remote(path):
            matches = _remote(path)
        elif os.path.isdir(full):
            folder = _records_folder(full)
            matches = _data_files([file for file in _walk(folder, set()) if not is_special(file)], folder)
            if not matches:
                raise RecipeError(f"path {path!r}: the folder holds no files (hidden ones are skipped).")
        elif is_special(full):
            raise RecipeError(
                f"path {path!r}: is a pipe or a device, not a file. Save what it gives to a file."
            )
        elif os.path.lexists(full):
            matches = [full]
        elif _MAGIC.search(path):
            entries = _globbed(full)
            matches = [os.path.normpath(e) for e in entries if not os.path.isdir(e) and not is_special(e)]
            if entries and not matches:
                raise RecipeError(
                    f"path {path!r}: matches folders only. To take the files in them write "
                    f"{path.rstrip('/') + '/**'!r}."
                )
            if not matches:
                raise RecipeError(f"path {path!r}: matches no file{_nearest(full)}.")
        else:
            raise RecipeError(f"path {path!r}: there is no such file or folder{_nearest(full)}.")
        files.update(matches)
    return sorted(files, key=lambda path: path.encode("utf-8", "surrogateescape"))


def name_files(files: Sequence[str], paths: Sequence[str], base: str) -> list[tuple[str, str]]:
    """Files that ``find(paths, base)`` gave, in the order of the source, each with its name in a manifest.

    A file that a path below the recipe's folder names is called by its place there; another one by its place below the fixed
    part of the path that names it: the folder, or what is before the first wildcard. They are sorted by their places seen
    from the recipe's folder, behind them those of absolute paths by these. Cost: a dictionary; files times folders and globs.

    >>> name_files(["r/a/x.json", "/d/e/y.json", "s/z.json"], ["a/*.json", "/d/*/y.json", "../s"], "r")
    [('s/z.json', 'z.json'), ('r/a/x.json', 'a/x.json'), ('/d/e/y.json', 'e/y.json')]
    """
    exact: dict[str, str] = {}  # file -> the path of the recipe that names it
    folders: list[tuple[str, str]] = []  # (fixed part, path of the recipe)
    for written in (os.path.expanduser(local_path(path)) for path in paths):
        full = os.path.normpath(os.path.join(base, written))
        exact.setdefault(full, written)
        folders.append((full, written))
        fixed, rest = _split(written)
        if _MAGIC.search(rest):
            folders.append((os.path.normpath(os.path.join(base, fixed)), written))
    named: list[tuple[int, bytes, str, str]] = []
    for file in files:
        if is_remote(local_path(file)):
            named.append((2, os.fsencode(file), file, published_path(file).replace(f"{_ELSEWHERE}/", "")))
            continue
        place = os.path.normpath(local_path(file))
        folder, written = os.path.dirname(place), exact.get(place, "")
        if not written:
            folder, written = next(((f, w) for f, w in folders if _is_below(place, f)), (folder, place))
        is_absolute = os.path.isabs(written)
        seen = place if is_absolute else _relative(place, base)
        is_inside = not is_absolute and os.path.normpath(written).split(os.sep)[0] != os.pardir
        label = seen if is_inside else _relative(place, folder)
        named.append((int(is_absolute), os.fsencode(seen), file, label))
    in_order = [(file, label) for _, _, file, label in sorted(named)]
    times = Counter(label for _, label in in_order)  # equal in several folders, or but for what is masked
    return [(f, f"{label}#{n}" if times[label] > 1 else label) for n, (f, label) in enumerate(in_order)]


def published_path(path: str) -> str:
    """A path of a recipe as manifests hold it: ``/data/zh/*.jsonl`` -> ``<SOURCE>/*.jsonl``; secrets of URLs masked."""
    *before, last = mask_url(path).split("::")
    scheme, separator, rest = last.partition("://")
    if separator and scheme not in ("file", "local"):
        return mask_url(path)
    place = rest if separator else last
    if os.path.isabs(place) or place.startswith("~"):
        place = f"{_ELSEWHERE}/{_split(os.path.normpath(place))[1]}"
    return "::".join([*before, scheme + separator + place if separator else place])


def local_path(path: str) -> str:
    """A path without the scheme of local files."""
    return path if "::" in path else path.removeprefix("file://").removeprefix("local://")


def _split(path: str) -> tuple[str, str]:
    """What is fixed of a path, and the rest: from the first wildcard on, else its last part."""
    parts = path.split(os.sep)
    first = next((n for n, part in enumerate(parts) if _MAGIC.search(part)), len(parts) - 1)
    return os.sep.join(parts[:first]) or (os.sep if path.startswith(os.sep) else ""), os.sep.join(
        parts[first:]
    )


def _is_below(path: str, folder: str) -> bool:
    return _relative(path, folder).split(os.sep, 1)[0] != os.pardir


def _relative(path: str, folder: str) -> str:
    """``os.path.relpath`` of a normalised path; a tenth of its time where that is in the path itself."""
    if folder in ("", os.curdir) and not os.path.isabs(path):
        return path
    start = os.path.join(folder, "")
    return (
        path[len(start) :]
        if folder and path.startswith(start)
        else os.path.relpath(path, folder or os.curdir)
    )


def _records_folder(folder: str) -> str:
    """Of a folder that ``datamix synth`` wrote only its records are data: answers and removed texts are not."""
    try:
        with open(os.path.join(folder, "manifest.json"), "rb") as stream:
            manifest = json.load(stream)
    except (OSError, ValueError):
        return folder
    if not isinstance(manifest, dict) or not {"synth", "datamix_version"} <= manifest.keys():
        return folder
    records = os.path.join(folder, "records")
    if not os.path.isdir(records):
        raise RecipeError(f"path {folder!r}: `datamix synth` has written no records there yet.")
    return records


def _globbed(full: str) -> list[str]:
    """What a glob matches. Folders below ``**`` are walked once, whatever links lead back and however many ``**``."""
    parts = full.split(os.sep)
    recursive = parts.index("**") if "**" in parts else len(parts)
    tail = parts[recursive:]
    if tail and tail[-1] == "**":
        tail.append("*")
    if not tail:
        return _expanded(full)
    if any(part.startswith(".") for part in tail):
        return glob.glob(full, recursive=True)
    head = os.sep.join(parts[:recursive]) or (os.sep if recursive else ".")
    entries: list[str] = []
    for folder in filter(_is_folder, _expanded(head) if _MAGIC.search(head) else [head]):
        for entry in _walk(folder, set(), is_glob=True):
            if _matches(os.path.relpath(entry, folder).split(os.sep), tail):
                entries.append(entry)
    return entries


def _expanded(pattern: str) -> list[str]:
    """``glob.glob`` without ``**``, but a folder that cannot be listed is an error: there it would hold nothing."""
    found = [os.sep if pattern.startswith(os.sep) else ""]
    for part in filter(None, pattern.split(os.sep)):
        if not _MAGIC.search(part):
            found = [path for path in (os.path.join(folder, part) for folder in found) if _state(path)]
            continue
        matches: list[str] = []
        for folder in filter(_is_folder, (folder or os.curdir for folder in found)):
            with explained(folder), os.scandir(folder) as entries:
                names = sorted(e.name for e in entries if part.startswith(".") or not e.name.startswith("."))
            prefix = "" if folder == os.curdir else folder
            matches += [os.path.join(prefix, n) for n in names if fnmatch.fnmatchcase(n, part)]
        found = matches
    return found


def _state(path: str, follow: bool = False) -> os.stat_result | None:
    """The state of a path; None where there is nothing. Raises DataError where the machine cannot tell."""
    with explained(path):
        try:
            return os.stat(path, follow_symlinks=follow)
        except (FileNotFoundError, NotADirectoryError):
            return None


def _is_folder(path: str) -> bool:
    state = _state(path, follow=True)
    return state is not None and stat.S_ISDIR(state.st_mode)


def _matches(names: list[str], pattern: list[str]) -> bool:
    """Whether the parts of a path match the parts of a glob; linear in both."""
    places = {0}  # how many parts of the pattern may be matched so far
    for name in names:
        for p, part in enumerate(pattern):
            if p in places and part == "**":
                places.add(p + 1)
        places = {
            p + (pattern[p] != "**")
            for p in places
            if p < len(pattern) and (pattern[p] == "**" or fnmatch.fnmatchcase(name, pattern[p]))
        }
    return len(pattern) in places


def _walk(folder: str, seen: set[tuple[int, int]], is_glob: bool = False) -> Iterator[str]:
    """Files below a folder. A folder that a link leads to a second time is not walked again; for a glob, not below itself."""
    state = os.stat(folder)
    if (state.st_dev, state.st_ino) in seen:
        return
    seen.add((state.st_dev, state.st_ino))
    with explained(folder), os.scandir(folder) as iterator:
        entries = sorted(iterator, key=lambda entry: os.fsencode(entry.name))
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, set(seen) if is_glob else seen, is_glob)
        else:
            yield entry.path


def _data_files(files: list[str], folder: str) -> list[str]:
    """Of a folder's files those that are data."""
    names = {_relative(file, folder): file for file in files}
    splits = sorted(
        os.path.dirname(name) for name in names if os.path.basename(name) == "state.json" and os.sep in name
    )
    if "dataset_dict.json" in names and splits:
        raise RecipeError(
            f"path {folder!r}: is a dataset of several splits ({', '.join(splits)}). Name the ones to take, "
            f"for example {os.path.join(folder, splits[-1])!r}."
        )
    data = [file for file in files if not _NOT_DATA.match(os.path.basename(file))]
    return data if any(_DATA.search(file) for file in data) else files


def _nearest(full: str) -> str:
    """ ", the nearest name is ..." for a path that does not exist."""
    folder = full
    while folder and not os.path.isdir(folder):
        folder, missing = os.path.split(folder)
    return _nearest_of(missing, folder or ".", os.listdir(folder or "."))


def _nearest_of(missing: str, folder: str, names: Iterable[str]) -> str:
    visible = sorted(name for name in names if not name.startswith("."))
    near = difflib.get_close_matches(missing, visible, n=1, cutoff=0.5)
    if near:
        return f"; the nearest name is {os.path.join(folder, near[0])!r}"
    if not visible:
        return f"; {folder!r} is empty"
    listed = ", ".join(visible[:5]) + (", ..." if len(visible) > 5 else "")
    return f"; {folder!r} holds {listed}"


def _remote(url: str) -> list[str]:
    with explained(url):
        filesystem, name = filesystem_of(url)
        is_glob = bool(_MAGIC.search(name))
        if not is_glob and (url.startswith(("http://", "https://")) or "::" in url):
            if not filesystem.exists(name):
                raise RecipeError(f"path {mask_url(url)!r}: there is no such file.")
            return [url]
        if "::" in url:
            raise RecipeError(
                f"path {mask_url(url)!r}: a chained address names one file; globs do not work in it."
            )
        if is_glob:
            files = [str(file) for file in filesystem.glob(name) if not filesystem.isdir(file)]
        elif filesystem.isdir(name):
            root = name.rstrip("/") + "/"
            files = [
                file for file in map(str, filesystem.find(name)) if "/." not in "/" + file.removeprefix(root)
            ]
            files = _data_files(files, name)
        else:
            files = [name] if filesystem.exists(name) else []
        if files:
            return [str(filesystem.unstrip_protocol(file)) for file in files]
        folder, _, missing = name.rstrip("/").rpartition("/")
        near = ""
        if not _MAGIC.search(folder) and filesystem.isdir(folder):
            names = [str(p).rstrip("/").rsplit("/", 1)[-1] for p in filesystem.ls(folder, detail=False)]
            near = mask_secrets(_nearest_of(missing, folder, names), url)
        raise RecipeError(f"path {mask_url(url)!r}: matches no file there{near}.")
