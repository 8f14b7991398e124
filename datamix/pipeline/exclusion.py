"""Which records the entries of ``exclude`` name: numbers of files and records, and the entries that name nothing.

Entries speak of inputs as the manifest lists them, so that a line copied from there, from ``rejects/`` or from ``trace`` works.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datamix.core.errors import nearest
from datamix.core.hashing import canonical
from datamix.recipe import Recipe
from datamix.recipe.excluded import Excluded

Excludes = tuple[
    tuple[int, tuple[int, ...] | None], ...
]  # of a source: (input file, its records or None: all)


@dataclass(frozen=True)
class ListedFile:
    """An input file as a manifest lists it; its number is its place there."""

    source: str
    path: str
    sha256: str
    records: int


@dataclass(frozen=True)
class Resolved:
    """What is excluded of each source, and what a person should know of entries that exclude nothing."""

    sources: tuple[Excludes, ...]
    unmatched: tuple[str, ...]


def resolve(recipe: Recipe, names: Sequence[str], files: Sequence[ListedFile]) -> Resolved:
    """The files and records that ``recipe.exclude`` names among ``files``; ``names`` are the sources in order."""
    licenses = {name: (source.license or "").casefold() for name, source in recipe.sources.items()}
    whole: set[int] = set()
    records: dict[int, set[int]] = defaultdict(set)
    unmatched: list[str] = []
    by_path: dict[str, list[int]] = defaultdict(list)
    for number, file in enumerate(files):
        by_path[file.path].append(number)
    for entry in recipe.exclude:
        numbers = _files(entry, files, by_path, licenses)
        whole.update(numbers if entry.record is None else ())
        for number in numbers if entry.record is not None else ():
            if entry.record < files[number].records:  # type: ignore[operator]
                records[number].add(entry.record)  # type: ignore[arg-type]
            else:
                unmatched.append(f"{_text(entry)}: the file has {files[number].records:,} records, from 0")
        if not numbers:
            unmatched.append(f"{_text(entry)}: {_nothing(entry, files, by_path, licenses)}")
    of_source: dict[str, list[tuple[int, tuple[int, ...] | None]]] = {name: [] for name in names}
    for number, file in enumerate(files):
        if number in whole:
            of_source[file.source].append((number, None))
        elif number in records:
            of_source[file.source].append((number, tuple(sorted(records[number]))))
    return Resolved(tuple(tuple(of_source[name]) for name in names), tuple(unmatched))


def _files(
    entry: Excluded,
    files: Sequence[ListedFile],
    by_path: Mapping[str, Sequence[int]],
    licenses: Mapping[str, str],
) -> list[int]:
    """The files that an entry is about."""
    if entry.file is not None:
        return [n for n in by_path.get(entry.file, ()) if entry.source in (None, files[n].source)]
    if entry.sha256 is not None:
        return [n for n, file in enumerate(files) if file.sha256 == entry.sha256]
    license_ = (entry.license or "").casefold()
    return [n for n, file in enumerate(files) if licenses.get(file.source) == license_]


def _text(entry: Excluded) -> str:
    return canonical(entry.model_dump())


def _nothing(
    entry: Excluded,
    files: Sequence[ListedFile],
    by_path: Mapping[str, Sequence[int]],
    licenses: Mapping[str, str],
) -> str:
    """Why an entry names no file, with the nearest that it may have meant."""
    if entry.file is not None:
        if entry.file in by_path:
            has = ", ".join(sorted({files[n].source for n in by_path[entry.file]}))
            return f"the file belongs to the source {has}"
        ends = [path for path in by_path if path.rsplit("/", 1)[-1] == entry.file.rsplit("/", 1)[-1]]
        close = ends[0] if ends else nearest(entry.file, list(by_path))
        return "no input has this path" + (f"; did you mean {close}?" if close else "")
    if entry.sha256 is not None:
        return "no input file has this sha256"
    known = ", ".join(sorted({s for s in licenses.values() if s})) or "none"
    return f"no source has this licence; there are: {known}"
