"""Foreign rows to our record kinds and back: formats, detection, column maps, rejects with their reasons."""

from datamix.shape.catalogue import FORMATS, Format, can_become, native_kinds
from datamix.shape.dataset_info import DatasetEntry, dataset_info, is_dataset_info
from datamix.shape.detect import Detection, detect
from datamix.shape.plain import Quick, together
from datamix.shape.rows import EVERYTHING, ShapeSpec, shape
from datamix.shape.unshape import WRITERS, unshape, unshape_counted

__all__ = [
    "EVERYTHING",
    "FORMATS",
    "WRITERS",
    "DatasetEntry",
    "Detection",
    "Format",
    "Quick",
    "ShapeSpec",
    "can_become",
    "dataset_info",
    "detect",
    "is_dataset_info",
    "native_kinds",
    "shape",
    "together",
    "unshape",
    "unshape_counted",
]
