"""The published JSON Schemas: files beside the package's source, shipped in its wheel."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from datamix.clean import STEPS
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
    """The recipe's schema, generated from its classes: what ``schemas/recipe.schema.json`` must hold.

    It describes what people write, not what it becomes: one path or a list of them, ``50M``, a step as ``{length: {min_chars: 2}}``.
    """
    from datamix.exporters import EXPORT_FORMATS
    from datamix.recipe import Recipe

    schema = Recipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    steps = {name: _step_options(name, schema["$defs"]["CleanStep"]["properties"]) for name in STEPS}
    options = {"type": ["object", "null"], "description": "Options of this format."}
    formats = {name: options for name in EXPORT_FORMATS}  # noqa: C420 - written out, never changed
    for name, entries in (("CleanStep", steps), ("Output", formats)):
        node = schema["$defs"][name]
        outer = {key: node["properties"][key] for key in ("sources", "fields") if key in node["properties"]}
        schema["$defs"][name] = {
            "title": node["title"],
            "description": node.get(
                "description", "An output format: its name, or a map of its name and options."
            ),
            "anyOf": [
                {"enum": list(entries)},
                {
                    "type": "object",
                    "properties": {**entries, **outer},
                    "additionalProperties": False,
                    "oneOf": [{"required": [entry]} for entry in entries],
                },
                {key: node[key] for key in ("type", "properties", "required", "additionalProperties")},
            ],
        }
    for name in ("sources", "groups"):
        schema["properties"][name]["additionalProperties"] = False  # a name of another form
    schema["$defs"]["Stage"]["required"] = []  # a name is given to those without one
    return schema


def _step_options(name: str, shared: dict[str, Any]) -> dict[str, Any]:
    """The options of one cleaning step, and where it applies."""
    options = TypeAdapter(STEPS[name]).json_schema()
    properties = {**options.get("properties", {}), "sources": shared["sources"], "fields": shared["fields"]}
    step = {"type": ["object", "null"], "properties": properties, "additionalProperties": False}
    return {**step, "description": " ".join((STEPS[name].__doc__ or f"{name}.").split())}


def synth_schema() -> dict[str, Any]:
    """The schema of recipes for ``datamix synth``: what ``schemas/synth.schema.json`` must hold."""
    from datamix.recipe.synth_recipe import SynthRecipe

    schema = SynthRecipe.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["properties"]["sources"]["additionalProperties"] = False  # a name of another form
    return schema


def write_recipe_schema() -> None:
    """Write the schemas of a checkout that come from the code again."""
    for name, schema in (("recipe", recipe_schema()), ("synth", synth_schema())):
        text = json.dumps(schema, ensure_ascii=False, indent=2, sort_keys=True) + "\n"
        (_folder() / f"{name}.schema.json").write_text(text, encoding="utf-8")
