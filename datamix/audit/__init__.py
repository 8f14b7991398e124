"""Recount a finished set from its files (``verify``), and hash its decoded rows (``content_digest``)."""

from .digest import ContentDigest, content_digest
from .findings import Check
from .promises import verify

__all__ = ["Check", "ContentDigest", "content_digest", "verify"]
