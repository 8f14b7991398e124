"""``report.html``: one page about a finished set, which opens offline and says first what matters.

The page is a function of the manifest and the rows: no time, no host, no absolute path, the same bytes wherever it is made.
"""

from datamix.reporting.page import render_report, render_rows

__all__ = ["render_report", "render_rows"]
