"""LLaMA-Factory's ``dataset_info.json`` read as it is: each entry says where a data set lies and how its rows are spelled.

Its rules are kept: a named column map hides every field that it does not name, ``formatting`` decides between alpaca and
sharegpt, ``tags`` rename roles. What cannot be text here (images, loading scripts) is said in ``problem``.
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
_MEDIA = ("images", "videos", "audios")


@dataclass(frozen=True)
class DatasetEntry:
    """One data set of a ``dataset_info.json``; ``format`` and ``columns`` go into a source as they are."""

    name: str
    files: tuple[str, ...]  # paths below the folder of dataset_info.json, or hf:// addresses
    format: str  # auto where the entry says nothing about its rows
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
    """Whether a JSON value is a dataset_info: an object of entries that each say where a data set lies."""
    places = {"hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name"}
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(entry, dict) and places & entry.keys() for entry in value.values())
    )


def _entry(name: str, entry: dict[str, Any]) -> DatasetEntry:
    columns = entry.get("columns") or {}
    tags = {key: word for key, word in (entry.get("tags") or {}).items() if not _is_plain(key, word)}
    files, problem = _files(entry)
    media = [column for column in _MEDIA if column in columns]
    if media and problem is None:
        problem = f"its rows need {', '.join(media)}, and only text is read"
    format, named = _spelling(entry, columns)
    turns = tuple((f"turn.{_TAGS[key]}", word) for key, word in sorted(tags.items()) if key in _TAGS)
    num = entry.get("num_samples")
    return DatasetEntry(
        name=name,
        files=files,
        format=format,
        columns=named + (turns if format in ("sharegpt", "messages", "ranking", "kto") else ()),
        ranking=bool(entry.get("ranking")),
        system=columns.get("system"),
        tags=tuple(sorted((entry.get("tags") or {}).items())),
        subset=entry.get("subset"),
        split=entry.get("split"),
        max_records=num if isinstance(num, int) and num > 0 else None,
        problem=problem,
    )


def _is_plain(tag: str, word: str) -> bool:
    """Whether the reader of turns knows the word without being told."""
    if tag == "role_tag":
        return word in ("role", "from")
    if tag == "content_tag":
        return word in ("content", "value")
    return ROLES.get(word) == _TAGS.get(tag)


def _files(entry: dict[str, Any]) -> tuple[tuple[str, ...], str | None]:
    if "file_name" in entry:
        return (str(entry["file_name"]),), None
    if "hf_hub_url" in entry:
        folder = f"/{entry['folder']}" if entry.get("folder") else ""
        return (f"hf://datasets/{entry['hf_hub_url']}{folder}",), None
    place = next(key for key in ("ms_hub_url", "om_hub_url", "script_url", "cloud_file_name") if key in entry)
    return (
        str(entry[place]),
    ), f"it lies at a {place}, which is not read; download it and give the files as path"


def _spelling(entry: dict[str, Any], columns: dict[str, str]) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The format of an entry, and our names for its columns."""
    chat = entry.get("formatting", "alpaca") in ("sharegpt", "openai")
    if not chat and columns and set(columns) == {"prompt"}:
        return "text", _renamed({"text": columns["prompt"]})
    if not entry.keys() & {"formatting", "columns", "ranking"}:
        return "alpaca", ()
    if not columns:
        return ("ranking" if entry.get("ranking") else "sharegpt" if chat else "alpaca"), ()
    fields: dict[str, str] = {}
    if chat:
        fields["conversations"] = columns.get("messages", "conversations")
    else:
        fields |= {ours: columns.get(theirs, "") for theirs, ours in _TEXT_FIELDS.items()}
    optional = ("system", "tools") if chat else ("history", "system")
    fields |= {name: columns.get(name, "") for name in optional}
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
