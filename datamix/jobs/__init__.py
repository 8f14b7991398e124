"""Whole jobs: ``build`` and ``sweep`` of a recipe; ``init``, ``check``, ``convert`` and deduplication of plain files."""
