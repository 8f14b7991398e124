"""Foreign rows to our record kinds and back: formats, detection, column maps, rejects with their reasons."""

from datamix.shape.catalogue import FORMATS, Format, can_become, native_kinds
from datamix.shape.detect import Detection, detect
from datamix.shape.rows import EVERYTHING, ShapeSpec, shape

__all__ = [
    "EVERYTHING",
    "FORMATS",
    "Detection",
    "Format",
    "ShapeSpec",
    "can_become",
    "detect",
    "native_kinds",
    "shape",
]
