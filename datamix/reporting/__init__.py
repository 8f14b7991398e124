"""What a person sees of a set: its report page, and what the terminal shows."""

from datamix.reporting.page import render_report, render_rows

__all__ = ["render_report", "render_rows"]
