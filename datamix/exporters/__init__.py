"""Training sets in the formats that trainers read: one file a format or trainer. A sink writes shards in parallel and what is there once; ``keeps`` and
``command`` say what survives there and what trains from it.

Rows come in training order as ``records.row_schema`` says; a sink turns a stream of them into files and never holds
more than a chunk.
"""

from datamix.exporters.catalog import EXPORT_FORMATS, ExportFormat, command, keeps, needs_records, open_sink
from datamix.exporters.stored_rows import read_rows
from datamix.exporters.target import RecordSource, SetInfo, Weighing

__all__ = [
    "EXPORT_FORMATS",
    "ExportFormat",
    "RecordSource",
    "SetInfo",
    "Weighing",
    "command",
    "keeps",
    "needs_records",
    "open_sink",
    "read_rows",
]
