"""LLaMA-Factory's ``dataset_info.json`` read as it is: each entry names the place of a data set and the fields of its rows.

Its rules hold: a column map hides every field that it does not name, ``formatting`` decides between alpaca and
sharegpt, ``tags`` rename roles. An entry that cannot be read as text (images, loading scripts) has a ``problem``.
Source: LLaMA-Factory ``src/llamafactory/data/parser.py`` and ``data/README.md``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamix.core.errors import RecipeError
from datamix.formats.turns import ROLES

_TEXT_FIELDS = {"prompt": "instruction", "query": "input", "response": "output"}
_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "call",
    "system_tag": "system",
}
_PLAIN = {"role_tag": ("role", "from"), "content_tag": ("content", "value")}  # known without a map
_MEDIA = ("images", "videos", "audios")
_PLACES = ("file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")


@dataclass(frozen=True)
class DatasetEntry:
    """One data set of a ``dataset_info.json``; ``format`` and ``columns`` go into a source as they are."""

    name: str
    files: tuple[str, ...]  # paths below the folder of dataset_info.json, or hf:// addresses
    format: str  # auto where the entry does not describe its rows
    columns: tuple[tuple[str, str], ...]
    ranking: bool
    system: str | None  # the column of the system text
    tags: tuple[tuple[str, str], ...]
    subset: str | None
    split: str | None
    max_records: int | None
    problem: str | None  # why it cannot be read here


def dataset_info(path: Path) -> list[DatasetEntry]:
    """The entries of a ``dataset_info.json`` in their order. Raises RecipeError: it is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}: cannot be read as a LLaMA-Factory dataset_info.json: {error}.") from None
    if not is_dataset_info(content):
        raise RecipeError(
            f"{path}: is not a LLaMA-Factory dataset_info.json: an object of entries with file_name, hf_hub_url or "
            "the like was expected. Give the data files themselves as path."
        )
    return [_entry(name, entry) for name, entry in content.items()]


def is_dataset_info(value: Any) -> bool:
    """Whether a JSON value is a dataset_info: an object whose entries each name the place of a data set."""
    entries = value.values() if isinstance(value, dict) else ()
    return bool(entries) and all(isinstance(e, dict) and e.keys() & set(_PLACES) for e in entries)


def _entry(name: str, entry: dict[str, Any]) -> DatasetEntry:
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    problem = None
    if "hf_hub_url" in entry and "file_name" not in entry:
        folder = f"/{entry['folder']}" if entry.get("folder") else ""
        file = f"hf://datasets/{entry['hf_hub_url']}{folder}"
    else:
        place = next(key for key in _PLACES if key in entry)
        file = str(entry[place])
        if place != "file_name":
            problem = f"it is at a {place}, which is not read; download it and give the files as path"
    media = [column for column in _MEDIA if column in columns]
    if media and problem is None:
        problem = f"its rows need {', '.join(media)}, and only text is read"
    format, renamed = _spelling(entry, columns)
    if format in ("auto", "sharegpt", "messages", "ranking", "kto"):
        renamed += tuple(
            (f"turn.{_TAGS[key]}", word)
            for key, word in sorted(tags.items())
            if key in _TAGS and word not in _PLAIN.get(key, ()) and ROLES.get(word) != _TAGS[key]
        )
    num = entry.get("num_samples")
    return DatasetEntry(
        name=name,
        files=(file,),
        format=format,
        columns=renamed,
        ranking=bool(entry.get("ranking")),
        system=columns.get("system"),
        tags=tuple(sorted(tags.items())),
        subset=entry.get("subset"),
        split=entry.get("split"),
        max_records=num if isinstance(num, int) and num > 0 else None,
        problem=problem,
    )


def _spelling(entry: dict[str, Any], columns: dict[str, str]) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The format of an entry, and our names for its columns."""
    chat = entry.get("formatting", "alpaca") in ("sharegpt", "openai")
    if not chat and columns and set(columns) == {"prompt"}:
        return "text", _renamed({"text": columns["prompt"]})
    if not entry.keys() & {"formatting", "columns", "ranking"}:
        return "alpaca", ()
    if not columns:
        return ("auto" if entry.get("ranking") else "sharegpt" if chat else "alpaca"), ()
    fields: dict[str, str] = {}
    if chat:
        fields["conversations"] = columns.get("messages", "conversations")
    else:
        fields |= {ours: columns.get(theirs, "") for theirs, ours in _TEXT_FIELDS.items()}
    optional = ("system", "tools") if chat else ("history", "system")
    fields |= {name: columns.get(name, "") for name in optional}
    if entry.get("ranking") and "response" in columns and not {"chosen", "rejected"} & columns.keys():
        return "caregpt", _renamed(fields)  # the older form: a list of answers, the best first
    if entry.get("ranking"):
        fields |= {name: columns.get(name, name) for name in ("chosen", "rejected")}
        if not chat:
            fields.pop("output")
        return "ranking", _renamed(fields)
    if "kto_tag" in columns:
        fields["label"] = columns["kto_tag"]
        return "kto", _renamed(fields)
    return ("sharegpt" if chat else "alpaca"), _renamed(fields)


def _renamed(fields: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """The map without what names itself, except that ``""`` (no such field) stays."""
    return tuple((ours, theirs) for ours, theirs in sorted(fields.items()) if ours != theirs)
