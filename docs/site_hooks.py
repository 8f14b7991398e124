"""What the site changes in the pages: it shows why a code block is not run, and writes bars in the code of tables as Python-Markdown does."""

from __future__ import annotations

import re
from typing import Any

NOT_RUN = re.compile(r"^( *)<!-- not run: (.*?) -->$", re.MULTILINE)
TABLE_ROW = re.compile(r"^\|.*$", re.MULTILINE)
CODE_SPAN = re.compile(r"`[^`]+`")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """``<!-- not run: needs a GPU -->`` becomes a line that a reader sees; ``\\|`` in the code of a table becomes ``|``."""
    chinese = page.file.src_uri.endswith(".zh.md")
    start = "测试不运行这段代码：" if chinese else "Not run by the tests: "
    end = "。" if chinese else "."
    markdown = NOT_RUN.sub(lambda m: f"{m[1]}*{start}{m[2]}{end}*", markdown)
    return TABLE_ROW.sub(
        lambda row: CODE_SPAN.sub(lambda code: code[0].replace("\\|", "|"), row[0]), markdown
    )
