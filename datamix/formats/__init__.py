"""Foreign rows to our record kinds and back: formats, detection, column maps, rejects with their reasons."""

from datamix.formats.dataset_info import DatasetEntry, dataset_info, is_dataset_info
from datamix.formats.detect import Detection, detect, unknown_roles
from datamix.formats.fast_path import FastPath, together
from datamix.formats.registry import RECORD_FORMATS, RecordFormat, can_become, native_kinds
from datamix.formats.to_records import EVERYTHING, ShapeSpec, shape
from datamix.formats.turns import TURN_PARTS
from datamix.formats.write_rows import WRITERS, unshape, unshape_counted

__all__ = [
    "EVERYTHING",
    "RECORD_FORMATS",
    "TURN_PARTS",
    "WRITERS",
    "DatasetEntry",
    "Detection",
    "FastPath",
    "RecordFormat",
    "ShapeSpec",
    "can_become",
    "dataset_info",
    "detect",
    "is_dataset_info",
    "native_kinds",
    "shape",
    "together",
    "unknown_roles",
    "unshape",
    "unshape_counted",
]
