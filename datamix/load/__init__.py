"""Open a built set: rows by number, numpy and torch batches, ``datasets`` views; resume at any step."""

from datamix.load.stores import RowStore
from datamix.load.training_set import TrainingSet, open_set

__all__ = ["RowStore", "TrainingSet", "open_set"]
