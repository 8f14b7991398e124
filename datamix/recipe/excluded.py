"""``exclude``: records that are left out of a set although its inputs hold them, one by one, by file or by licence.

A list in the recipe, or ``{path: FILE}`` with one JSON object a line. Both become the same sorted list, so that the place of the
list changes no set and a manifest says by itself what must be absent.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from datamix.core.errors import RecipeError
from datamix.core.hashing import canonical
from datamix.recipe.mistakes import describe
from datamix.recipe.parts import Model

_FORMS = "{source, file, record}, {file}, {license} or {sha256}"


def _sha256(value: str | None) -> str | None:
    if value is not None and re.fullmatch("[0-9a-f]{64}", value) is None:
        raise ValueError(
            f"is {value!r}; a sha256 has 64 of the digits 0-9a-f, as the manifest's inputs show it"
        )
    return value


_ABSENT = Field(exclude_if=lambda value: value is None)  # the digest of a recipe holds what is written


class Excluded(Model):
    """What one entry leaves out: a record, the records of a file, of a licence, or of the file with a sha256."""

    source: Annotated[str | None, Field(min_length=1), _ABSENT] = None
    """Source of the record."""
    file: Annotated[str | None, Field(min_length=1), _ABSENT] = None
    """File, by its path in the manifest's `inputs`."""
    record: Annotated[int | None, Field(ge=0), _ABSENT] = None
    """Number of the record in its file, from 0."""
    license: Annotated[str | None, Field(min_length=1), _ABSENT] = None
    """Licence of sources, upper and lower case alike."""
    sha256: Annotated[str | None, AfterValidator(_sha256), _ABSENT] = None
    """sha256 of a file, as in the manifest's `inputs`."""

    @model_validator(mode="after")
    def _is_one_form(self) -> Excluded:
        given = {name for name in type(self).model_fields if getattr(self, name) is not None}
        if given not in ({"source", "file", "record"}, {"file"}, {"license"}, {"sha256"}):
            raise ValueError(f"takes one of {_FORMS}, and has {', '.join(sorted(given)) or 'nothing'}")
        return self


class ExcludeFile(Model):
    """Entries in a file of their own."""

    path: str
    """JSON Lines, one entry a line; relative to the recipe."""


def _sorted(entries: tuple[Excluded, ...]) -> tuple[Excluded, ...]:
    """Each entry once, in one order."""
    by_text = {canonical(entry.model_dump()): entry for entry in entries}
    return tuple(by_text[text] for text in sorted(by_text))


Exclude = Annotated[
    tuple[Excluded, ...],
    BeforeValidator(lambda value: value, json_schema_input_type=ExcludeFile | tuple[Excluded, ...]),
    AfterValidator(_sorted),
]


def expand(value: Any, base: str) -> Any:
    """A list of entries as it is; of ``{path: FILE}`` the entries in the file. Raises RecipeError for a line that is none."""
    if not isinstance(value, dict) or set(value) != {"path"} or not isinstance(value["path"], str):
        return value
    entries = read_entries(Path(base, Path(value["path"]).expanduser()))
    return [entry.model_dump() for entry in entries]


def read_entries(path: Path) -> tuple[Excluded, ...]:
    """The entries of a file, each once. Raises RecipeError: it cannot be read, or a line is no entry."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        problem = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise RecipeError(
            f"exclude: {path} cannot be read: {problem}. It holds one JSON object a line: {_FORMS}."
        ) from None
    entries = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                entries.append((f"{path}, line {number}", json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise RecipeError(
                    f"exclude: {path}, line {number} is no JSON: {error}. A line is one of {_FORMS}."
                ) from None
    return _checked(entries)


def check_entries(values: Iterable[Any]) -> tuple[Excluded, ...]:
    """Plain values as entries, each once. Raises RecipeError for one that is none."""
    return _checked((f"entry {number}", value) for number, value in enumerate(values))


def _checked(values: Iterable[tuple[str, Any]]) -> tuple[Excluded, ...]:
    entries = []
    for where, value in values:
        try:
            entries.append(Excluded.model_validate(value))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            problem = describe(first, first["loc"], list(Excluded.model_fields)).rstrip("?")
            raise RecipeError(f"exclude: {where}: {key or 'it'} {problem}.") from None
    return _sorted(tuple(entries))


def union(first: Iterable[Excluded], second: Iterable[Excluded]) -> tuple[Excluded, ...]:
    """The entries of both, each once."""
    return _sorted((*first, *second))


class Licenses(Model):
    """Which licences sources may have."""

    allow: Annotated[tuple[str, ...], Field(min_length=1)]
    """Licences, upper and lower case alike; a source with another one, or none, stops before work."""
