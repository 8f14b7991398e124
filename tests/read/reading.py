"""Small verbs for tests of the readers."""

from pathlib import Path
from typing import Any

from datamix.core.contracts import Reject, Rows, Slice
from datamix.read import cut, read, sniff

SHARED = Path(__file__).parents[3] / "shared" / "data"


def joined(chunks: list[Rows]) -> Rows:
    """Chunks as one."""
    whole = Rows([], [], [], [])
    for rows in chunks:
        assert len(rows.values) == len(rows.records) == len(rows.lines) == len(rows.raws)
        whole.values.extend(rows.values)
        whole.records.extend(rows.records)
        whole.lines.extend(rows.lines)
        whole.raws.extend(rows.raws)
        whole.rejects.extend(rows.rejects)
    return whole


def rows_of(path: Path | str, declared: str | None = None, **options: Any) -> Rows:
    """A whole file, as a build would read it."""
    pieces = cut(str(path), "0" * 64, sniff(str(path), declared))
    return joined([rows for piece in pieces for rows in read(piece, **options)])


def as_container(path: Path, content: bytes, container: str, **named: Any) -> Rows:
    """A file of ``content`` read as ``container``, whatever it looks like."""
    path.write_bytes(content)
    return joined(list(read(Slice(str(path), "0" * 64, container, **named))))


def reasons(rows: Rows) -> list[str]:
    return [reject.reason for reject in rows.rejects]


def in_order(rows: Rows) -> list[tuple[int, bytes]]:
    """(ordinal, raw bytes) of values and rejects together."""
    values = list(zip(rows.records, rows.raws, strict=True))
    return sorted(values + [(r.record, r.raw) for r in rows.rejects])


def only(rows: Rows) -> Reject:
    """The one reject."""
    assert len(rows.rejects) == 1
    return rows.rejects[0]
