"""Training sets in the formats that trainers read: one file a format, two methods each.

Rows come in training order as ``records.row_schema`` says; a sink turns a stream of them into files and never holds
more than a chunk.
"""

from datamix.write.catalog import FORMATS, Format, command, keeps, needs_records, open_sink
from datamix.write.rows import read_rows
from datamix.write.sets import RecordSource, SetInfo, Weighing

__all__ = [
    "FORMATS",
    "Format",
    "RecordSource",
    "SetInfo",
    "Weighing",
    "command",
    "keeps",
    "needs_records",
    "open_sink",
    "read_rows",
]
