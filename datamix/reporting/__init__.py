"""What a person sees of a set: its report page, its card, and what the terminal shows."""

from datamix.reporting.card import render_card
from datamix.reporting.page import render_report, render_rows

__all__ = ["render_card", "render_report", "render_rows"]
