"""What a file is, from its first records: container, encoding, record format. Reads a few hundred records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datamix.core.contracts import Reject, Slice
from datamix.formats import Detection, detect
from datamix.read import DOCUMENTS, read, sniff

SAMPLE_RECORDS = 300
_PROSE = (*DOCUMENTS, "lines", "warc")


@dataclass(frozen=True)
class Recognised:
    """One file as one slice, and what its first records are."""

    path: str
    piece: Slice
    num_bytes: int
    values: list[Any]  # the first records
    rejects: list[Reject]  # those among them that could not be read
    detection: Detection | None  # None: no known format, or nothing could be read

    def fields(self) -> str:
        """The fields of the first record, for a sentence."""
        if not self.values:
            return (
                "it holds no records" if not self.rejects else f"its first record: {self.rejects[0].detail}"
            )
        first = self.values[0]
        if not isinstance(first, dict):
            return f"its first record is a {type(first).__name__}"
        return f"its first record has the fields {', '.join(map(str, first))}"[:200]


def recognise(path: str, columns: tuple[tuple[str, str], ...] = ()) -> Recognised:
    """Look into a file. Raises DataError: it is missing, damaged or of no readable kind."""
    seen = sniff(path)
    piece = Slice(path, "", seen.container, seen.compression, seen.encoding, seen.options)
    values: list[Any] = []
    rejects: list[Reject] = []
    for rows in read(piece, limit=SAMPLE_RECORDS):
        values += rows.values
        rejects += rows.rejects
    detection = Detection("text", "text") if seen.container in _PROSE and values else detect(values, columns)
    return Recognised(path, piece, seen.num_bytes, values, rejects, detection)
