"""The README beside a trainer's files: the command that trains from them, and what survives there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

UNSEEN = (
    "Our tests have not run this trainer: the files follow its sources, and only what their layout alone assures is listed as "
    "kept. Train two steps before a long run."
)


def readers(program: str, found: str) -> str:
    """For a trainer whose own reader was run on these files by hand, without training."""
    return f"The data reader of {program} gave {found}, equal to ours; training was not run. Train two steps before a long run."


_MEANS = {  # what it means that a promise is kept, and that it is not
    "ratio": ("every source keeps its share over one pass", "the shares of the sources change"),
    "order": (
        "rows are trained in our order, so the shares hold at every step",
        "rows may come in another order: the shares hold over one pass, not at every step",
    ),
    "isolation": ("no document sees another", "documents that share a row may see each other"),
}
_PLACES = {  # words in a command that the reader puts in
    "MODEL": "`MODEL` is yours: a folder, or a name on the Hub.",
    "TEMPLATE": "`TEMPLATE` is the name of one of its chat templates, such as `qwen3`.",
    "CHECKOUT": "`CHECKOUT` is your copy of the trainer's repository.",
    "CONFIG": "`CONFIG` is your recipe's config.",
}


def readme(title: str, command: str, keeps: Sequence[str], notes: Sequence[str]) -> str:
    """Markdown: the command (or several, a line each), what is kept of ratio, order and isolation, and notes."""
    kept = [
        f"- {name}: {'kept' if name in keeps else '**not kept**'} ({means[name not in keeps]})"
        for name, means in _MEANS.items()
    ]
    places = [said for word, said in _PLACES.items() if re.search(rf"\b{word}\b", command)]
    return "\n".join(
        (
            f"# {title}",
            "",
            "Run one of these in this folder:" if "\n" in command else "Run in this folder:",
            "",
            "```sh",
            command,
            "```",
            "",
            *((" ".join(places), "") if places else ()),
            "What the trainer keeps of the mixture:",
            "",
            *kept,
            "",
            *(f"{note}\n" for note in notes),
            "`../manifest.json` says what every row is made of and holds a checksum of each file here.",
            "",
        )
    )


def yaml(settings: Mapping[str, Any]) -> str:
    """Settings as YAML, in the order given: every value as JSON, which YAML reads; lists one item a line."""
    lines = []
    for key, value in settings.items():
        if isinstance(value, list) and value:
            lines += [f"{key}:", *(f"  - {json.dumps(item, ensure_ascii=False)}" for item in value)]
        elif isinstance(value, dict):
            lines += [f"{key}:", *(f"  {k}: {json.dumps(v, ensure_ascii=False)}" for k, v in value.items())]
        else:
            lines.append(f"{key}: {json.dumps(value, ensure_ascii=False)}")
    return "\n".join(lines) + "\n"
