"""The README beside a trainer's files: the command that trains from them, and what survives there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

UNSEEN = (
    "Our tests have not run this trainer: the files follow its sources, and only what their layout alone assures is listed as "
    "kept. Train two steps before a long run."
)
_MEANS = {
    "ratio": "every source keeps its share",
    "order": "rows are trained in our order, so the shares hold at every step",
    "isolation": "documents packed into one row do not see each other",
}


def readme(title: str, command: str, keeps: Sequence[str], notes: Sequence[str]) -> str:
    """Markdown: the command, a line for each of ratio, order and isolation, and notes."""
    kept = [f"- {name}: {'kept' if name in keeps else '**not kept**'} ({_MEANS[name]})" for name in _MEANS]
    return "\n".join(
        (
            f"# {title}",
            "",
            "Run in this folder:",
            "",
            "```sh",
            command,
            "```",
            "",
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
