"""Carry tasks out: one task safely (``store``), many on this machine (``local``)."""

from .local import LocalEngine, default_workers
from .store import Store, carry

__all__ = ["LocalEngine", "Store", "carry", "default_workers"]
