"""Recount a finished set from its files: ``verify``."""

from datamix.audit.findings import Check
from datamix.audit.promises import verify

__all__ = ["Check", "verify"]
