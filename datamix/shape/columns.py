"""Column maps: our name of a field -> the name it has in the file.

A field that the map names is read from there and from nowhere else; a field that serves under another name no longer
counts under its own. ``input: ""`` says that the file has no such field.
"""

from __future__ import annotations

from collections.abc import Callable

from datamix.shape.draft import Row


def renamer(columns: tuple[tuple[str, str], ...]) -> Callable[[Row], Row] | None:
    """A function from rows with the file's names to rows with ours; None where nothing is renamed."""
    pairs = tuple((ours, theirs) for ours, theirs in columns if "." not in ours)
    if all(ours == theirs for ours, theirs in pairs):
        return None
    gone = {theirs for _, theirs in pairs} | {ours for ours, _ in pairs}

    def rename(row: Row) -> Row:
        named = {key: value for key, value in row.items() if key not in gone}
        for ours, theirs in pairs:
            if theirs in row:
                named[ours] = row[theirs]
        return named

    return rename
