"""Recount a finished set from its files: ``verify``."""

from .findings import Check
from .promises import verify

__all__ = ["Check", "verify"]
