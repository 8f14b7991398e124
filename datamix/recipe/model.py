"""The recipe: what a training set is made of, as one typed value that YAML and Python share.

Pydantic stands here and in ``parts``, nowhere else: it reports every error at once; the YAML gives the lines; the published JSON
Schema (``schemas/recipe.schema.json``) is generated from these classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from datamix.errors import RecipeError
from datamix.identity import digest
from datamix.recipe import strict_yaml
from datamix.recipe.mistakes import explain
from datamix.recipe.parts import (
    CleanStep,
    Decontaminate,
    Dedupe,
    Encode,
    Group,
    Mix,
    Model,
    Name,
    Output,
    Source,
    Validation,
)
from datamix.records import Kind


class Recipe(Model):
    """What a training set is made of. ``Recipe.read(path)`` for YAML, ``Recipe.of({...}, base)`` in Python."""

    name: Name
    kind: Kind
    seed: int = 42
    tokenizer: str
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = Field({})
    sources: Annotated[dict[Name, Source], Field(min_length=1)]
    groups: dict[Name, Group] = Field({})
    clean: tuple[CleanStep, ...] = ()
    dedupe: Dedupe | None = None
    decontaminate: Decontaminate | None = None
    validation: Validation | None = None
    encode: Encode = Encode()
    mix: Mix = Mix()
    max_reject_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    write: tuple[Output, ...] = (Output(name="parquet"),)

    _base: str = PrivateAttr(default=".")
    _name: str = PrivateAttr(default="recipe")
    _document: strict_yaml.Document | None = PrivateAttr(default=None)

    @property
    def base(self) -> str:
        """The folder that relative paths start from."""
        return self._base

    @model_validator(mode="before")
    @classmethod
    def _defaults_by_kind(cls, value: Any) -> Any:
        """Fill what the contract's table gives each kind, so that the resolved recipe says it."""
        if not isinstance(value, dict) or value.get("kind") not in DEFAULTS:
            return value
        unit, pack, overlong = DEFAULTS[value["kind"]]
        mix, encode = value.get("mix") or {}, value.get("encode") or {}
        if isinstance(mix, dict) and mix.get("unit") is None:
            value = {**value, "mix": {**mix, "unit": unit}}
        if isinstance(encode, dict):
            filled = {k: v for k, v in (("pack", pack), ("overlong", overlong)) if encode.get(k) is None}
            value = {**value, "encode": {**encode, **filled}}
        return value

    @classmethod
    def read(cls, path: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
        """Load a YAML recipe; ``overrides`` are ``key.path=value``. Raises RecipeError with every problem found."""
        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise RecipeError(
                f"There is no recipe at {path}. `datamix init DATA -o {file.name}` writes one."
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"The recipe {path} cannot be read: {error}.") from None
        document = strict_yaml.load(text, str(path))
        value = document.value if document.value is not None else {}
        for override in overrides:
            strict_yaml.set_value(value, override)
        return cls._checked(value, str(file.parent), str(path), document)

    @classmethod
    def of(cls, value: dict[str, Any], base: str | Path = ".") -> Recipe:
        """The same from a plain dict; relative paths start from ``base``."""
        return cls._checked(value, str(base), "recipe", None)

    @classmethod
    def _checked(cls, value: Any, base: str, name: str, document: strict_yaml.Document | None) -> Recipe:
        if not isinstance(value, dict):
            raise RecipeError(
                f"{name}: a recipe is a map of keys such as name, kind, sources; found {type(value).__name__}."
            )
        from datamix.recipe.entries import expand

        if "sources" in value:
            value = {**value, "sources": expand(value["sources"], base)}
        try:
            recipe = cls.model_validate(value)
        except ValidationError as error:
            raise RecipeError(told_all(name, document, explain(error, cls))) from None
        from datamix.recipe.rules import broken_rules

        problems = broken_rules(recipe)
        if problems:
            raise RecipeError(told_all(name, document, problems))
        recipe._base, recipe._name, recipe._document = base, name, document
        return recipe

    def told_all(self, problems: Iterable[tuple[strict_yaml.Key, str]]) -> str:
        """Problems of this recipe, one a line in the order of the file: file, line, key, what is wrong."""
        return told_all(self._name, self._document, problems)

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default filled in, paths as written: what the manifest holds."""
        return self.model_dump(mode="json")

    def sha256(self) -> str:
        """The fingerprint of the resolved recipe."""
        return digest(self.resolved())


DEFAULTS: dict[str, tuple[str, str, str]] = {  # kind -> mix.unit, encode.pack, encode.overlong
    "pretrain": ("tokens", "best_fit", "split"),
    "sft": ("loss_tokens", "none", "drop_turns"),
    "preference": ("records", "none", "truncate_prompt"),
    "prompt": ("records", "none", "drop"),
}


def told_all(
    name: str, document: strict_yaml.Document | None, problems: Iterable[tuple[strict_yaml.Key, str]]
) -> str:
    """``recipe.yaml, line 7: sources.a.path: there is no such file.``, one a line, in the order of the file."""
    lines: dict[str, int] = {}
    for key, text in problems:
        line = document.line(key) if document else None
        where = f"{name}, line {line}" if line else name
        end = "" if text.endswith(("?", ".")) else "."
        lines.setdefault(f"{where}: {'.'.join(map(str, key)) or 'the recipe'}: {text}{end}", line or 0)
    return "\n".join(sorted(lines, key=lines.__getitem__))
