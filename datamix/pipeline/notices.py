"""Notices of a build: why encoding dropped records (in the chat template's words), and which source is scarce."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from datamix.pipeline.progress import short_count

UNIT_WORDS = {"records": "records", "tokens": "tokens", "loss_tokens": "loss tokens"}

_DROPPED = {
    "overlong": "longer than encode.max_length, with nothing left to take away",
    "no_loss": "nothing in them is trained",
    "empty": "nothing is said in them",
    "special_text": "they hold the text of a control token (encode.special_text: reject)",
    "template": "the chat template refuses them",
}
_NOTICED = {
    "special_text": "hold the text of a control token",
    "unwritten": "say something that the chat template leaves out",
    "unwritten_tools": "define tools that the chat template leaves out",
}


def encode_warnings(manifest: dict[str, Any]) -> list[str]:
    """One line for each reason of each source; nothing where encoding met nothing."""
    lines: list[str] = []
    for name, source in manifest["sources"].items():
        noticed = source.get("noticed", {})
        for reason, count in source["dropped_by"].items():
            words = _DROPPED.get(reason, reason)
            if reason == "template":
                words = f"{words}: {_messages(noticed)}"
            lines.append(f"Dropped: {count:,} records of {name}: {words}.")
        special = manifest["recipe"]["encode"]["special_text"]
        for reason, count in noticed.items():
            if reason in _NOTICED and not (reason == "special_text" and special == "reject"):
                kept = {"text": ", kept as text", "allow": ", read as control"}[special]
                lines.append(f"Note: {count:,} records of {name} {_NOTICED[reason]}"
                             f"{kept if reason == 'special_text' else ''}.")  # fmt: skip
    return lines


def _messages(noticed: dict[str, int]) -> str:
    said = {
        name.removeprefix("template: "): n for name, n in noticed.items() if name.startswith("template: ")
    }
    most = sorted(said.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = "; ".join(f"{text} ({count:,})" for text, count in most[:3])
    return f"{shown}; and {len(most) - 3} other messages" if len(most) > 3 else shown


_MAX_UNUSED = 5  # columns of the ladder


def scarcity_text(scarcity: dict[str, Any], unit: str, about: str = "") -> str:
    """Which sources set the size, and what more epochs of them would give."""
    scarce, rungs = scarcity["scarce"], scarcity["ladder"]
    most = sorted(
        ((share, name) for name, share in rungs[0]["unused"].items() if share >= 0.005), reverse=True
    )
    idle = [name for name in rungs[0]["unused"] if name in [n for _, n in most[:_MAX_UNUSED]]]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("max_epochs", "size", "epochs", *(f"unused {name}" for name in idle)):
        table.add_column(name, justify="right")
    for rung in rungs:
        table.add_row(
            str(rung["max_epochs"]),
            about + short_count(rung["total"]),
            f"{max(rung['epochs'][name] for name in scarce):.2f}",
            *(f"{rung['unused'][name]:.0%}" for name in idle),
        )
    said = f"{scarce[0]} sets" if len(scarce) == 1 else f"{', '.join(scarce[:-1])} and {scarce[-1]} set"
    whose = "its max_epochs" if len(scarce) == 1 else "max_epochs of all of them"
    return (
        f"Scarce: {said} the size and would leave more than half of another source unused. With {whose} raised, "
        f"in {UNIT_WORDS[unit]}:\n{table_text(table)}"
    )


def table_text(table: Table) -> str:
    """A table as plain text, 160 columns at most."""
    buffer = StringIO()
    Console(file=buffer, width=160, highlight=False).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()).strip("\n")
