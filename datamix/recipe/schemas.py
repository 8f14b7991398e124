"""The published JSON Schemas: files beside the package's source, shipped in its wheel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datamix.core.errors import RecipeError, nearest

_HERE = Path(__file__).parent.parent


def _folder() -> Path:
    """``schemas/`` in the wheel, or beside the package in a checkout."""
    inside = _HERE / "schemas"
    return inside if inside.is_dir() else _HERE.parent / "schemas"


def schema_names() -> list[str]:
    """The names of the published schemas."""
    return sorted(p.name.removesuffix(".schema.json") for p in _folder().glob("*.schema.json"))


def schema_text(name: str) -> str:
    """A schema as it is published. Raises RecipeError for an unknown name."""
    path = _folder() / f"{name}.schema.json"
    if not path.is_file():
        close = nearest(name, schema_names())
        hint = f"Did you mean {close}?" if close else f"There are: {', '.join(schema_names())}."
        raise RecipeError(f"There is no schema called {name!r}. {hint}")
    return path.read_text(encoding="utf-8")


def recipe_schema() -> dict[str, Any]:
    """The recipe's schema, generated from its classes: what ``schemas/recipe.schema.json`` must hold."""
    from datamix.recipe import Recipe

    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return schema


def write_recipe_schema() -> None:
    """Write ``schemas/recipe.schema.json`` of a checkout again."""
    text = json.dumps(recipe_schema(), ensure_ascii=False, indent=2, sort_keys=True) + "\n"
    (_folder() / "recipe.schema.json").write_text(text, encoding="utf-8")
