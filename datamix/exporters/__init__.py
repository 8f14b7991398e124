"""Training sets in the formats that trainers read: a class a format. It writes shards in parallel and what is there once;
``keeps`` and ``command`` say what survives in the trainer and what trains from the folder.

Rows come in training order as ``records.row_schema`` says; a sink turns a stream of them into files and never holds
more than a chunk.
"""

from datamix.exporters.catalog import EXPORT_FORMATS, command, keeps, needs_records, open_sink
from datamix.exporters.export_format import ExportFormat, RecordSource, SetInfo, Weighing

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
]
