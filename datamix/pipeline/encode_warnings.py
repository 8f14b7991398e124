"""What encoding met that a person should know: why records were dropped, in the template's own words, and what was odd."""

from __future__ import annotations

from typing import Any

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
