"""Text with colours for a terminal; whoever prints it takes them away where there is none."""

from __future__ import annotations

import io
import shutil
from typing import Any

_WIDTH = 112  # columns where there is no terminal, and the least that tables take

TRAINED = "green"
HEAD = "bold"
SOFT = "dim"
GONE = "red"
NEW = "green"


def render(*parts: Any) -> str:
    """Rich renderables as text with ANSI codes: tables as wide as the terminal, text left for it to wrap."""
    from rich.console import Console
    from rich.text import Text

    width = max(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH)
    sink = io.StringIO()
    console = Console(
        file=sink, force_terminal=True, color_system="standard", width=width, highlight=False, emoji=False
    )
    for part in parts:
        console.print(part, markup=False, soft_wrap=isinstance(part, Text))
    return sink.getvalue().rstrip("\n")
