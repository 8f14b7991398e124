"""``datamix inspect``: records of a file, or rows of a finished set, as a person reads them.

Rows are decoded from their ids with the tokenizer that the set keeps, trained tokens coloured, documents apart. Removed
records stand beside what was kept instead, the difference marked. One row group is read for a row, one pass for counts.
"""

from __future__ import annotations

from pathlib import Path

from datamix.core.errors import RecipeError
from datamix.reporting.decode import read_manifest, train_shards

_HTML_ROWS = 100


def show(path: Path, row: int | None, stats: bool, removed: bool, html: bool = False) -> str:
    """What ``datamix inspect`` prints: text with ANSI colours, or with ``html`` a page of a hundred rows.

    ``path`` is a finished set, one of its Parquet files, or a file of records. Raises RecipeError where it is neither, or
    has no row ``row``; DataError where a file cannot be read.
    """
    if not path.exists():
        raise RecipeError(
            f"There is nothing at {path}. Name the OUT folder of a build, or a file of records."
        )
    out = _set_of(path)
    if out is None:
        if path.is_dir():
            raise RecipeError(
                f"{path} holds no manifest.json, so it is not a finished set. Name a set, or a file of records."
            )
        if removed or html:
            raise RecipeError(f"{path} is a file of records; --removed and --html are for finished sets.")
        if stats:
            from datamix.reporting.inspect_cleaning import show_cleaning

            return show_cleaning(path)
        from datamix.reporting.inspect_records import show_records

        return show_records(path, row)
    manifest = read_manifest(out)
    if html:
        from datamix.reporting import render_rows

        return render_rows(out, manifest, row or 0, _HTML_ROWS)
    if stats:
        from datamix.reporting.inspect_stats import show_stats

        return show_stats(out, manifest)
    if removed:
        from datamix.reporting.inspect_removed import show_pairs

        return show_pairs(out, manifest, row)
    from datamix.reporting.inspect_rows import show_rows

    shards = train_shards(out, manifest) if path == out else [path]
    return show_rows(out, manifest, shards, row)


def _set_of(path: Path) -> Path | None:
    """The finished set that ``path`` is, or that it is a Parquet file of."""
    if path.is_dir():
        return path if (path / "manifest.json").is_file() else None
    for folder in list(path.absolute().parents)[:3]:
        if path.suffix == ".parquet" and (folder / "manifest.json").is_file() and (folder / "train").is_dir():
            return folder
    return None
