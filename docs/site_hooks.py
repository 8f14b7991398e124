"""What the site adds to the pages: the reason beside each code block that the tests do not run."""

from __future__ import annotations

import re
from typing import Any

NOT_RUN = re.compile(r"^( *)<!-- not run: (.*?) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """``<!-- not run: needs a GPU -->`` above a block becomes a line that a reader sees."""
    chinese = page.file.src_uri.endswith(".zh.md")
    start = "测试不运行这段代码：" if chinese else "Not run by the tests: "
    end = "。" if chinese else "."
    return NOT_RUN.sub(lambda m: f"{m[1]}*{start}{m[2]}{end}*", markdown)
