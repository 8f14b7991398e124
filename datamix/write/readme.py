"""The README beside a trainer's files: the command that trains from them, and what survives there."""

from __future__ import annotations

from collections.abc import Sequence

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
