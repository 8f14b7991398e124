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

from datamix.core.errors import RecipeError, mask_url
from datamix.core.hashing import digest
from datamix.core.records import Kind
from datamix.recipe import strict_yaml
from datamix.recipe.mistakes import explain
from datamix.recipe.parts import (
    HELD_OUT,
    CleanStep,
    Decontaminate,
    Dedupe,
    Encode,
    Epochs,
    Group,
    Mix,
    Model,
    Name,
    Output,
    Source,
    Validation,
    Weighed,
)
from datamix.recipe.strict_yaml import Key


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
    _document: strict_yaml.YamlDocument | None = PrivateAttr(default=None)

    @property
    def base(self) -> str:
        """The folder that relative paths start from."""
        return self._base

    @property
    def unit(self) -> str:
        """``mix.unit``: validation fills in the default of the kind."""
        assert self.mix.unit is not None
        return self.mix.unit

    @property
    def pack(self) -> str:
        """``encode.pack``, filled in likewise."""
        assert self.encode.pack is not None
        return self.encode.pack

    @property
    def overlong(self) -> str:
        """``encode.overlong``, filled in likewise."""
        assert self.encode.overlong is not None
        return self.encode.overlong

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
    def _checked(cls, value: Any, base: str, name: str, document: strict_yaml.YamlDocument | None) -> Recipe:
        if not isinstance(value, dict):
            raise RecipeError(
                f"{name}: a recipe is a map of keys such as name, kind, sources; found {type(value).__name__}."
            )
        from datamix.recipe.dataset_entries import expand

        if "sources" in value:
            value = {**value, "sources": expand(value["sources"], base)}
        try:
            recipe = cls.model_validate(value)
        except ValidationError as error:
            raise RecipeError(format_problems(name, document, explain(error, cls))) from None
        pass

        problems = broken_rules(recipe)
        if problems:
            raise RecipeError(format_problems(name, document, problems))
        recipe._base, recipe._name, recipe._document = base, name, document
        return recipe

    def told_all(self, problems: Iterable[tuple[strict_yaml.Key, str]]) -> str:
        """Problems of this recipe, one a line in the order of the file: file, line, key, what is wrong."""
        return format_problems(self._name, self._document, problems)

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default filled in, paths as written: what the manifest holds."""
        return self.model_dump(mode="json")

    def published(self) -> dict[str, Any]:
        """The resolved recipe as manifests hold it: secrets of URLs are masked."""
        masked: dict[str, Any] = _masked(self.resolved())
        return masked

    def sha256(self) -> str:
        """The fingerprint of the published recipe: another password in a URL is the same recipe."""
        return digest(self.published())


def _masked(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _masked_paths(v) if k in _PATH_KEYS else _masked(v) for k, v in value.items()}
    return [_masked(item) for item in value] if isinstance(value, list) else value


def _masked_paths(value: Any) -> Any:
    if isinstance(value, list):
        return [_masked_paths(item) for item in value]
    return mask_url(value) if isinstance(value, str) else _masked(value)


_PATH_KEYS = ("path", "against", "tokenizer", "chat_template")


DEFAULTS: dict[str, tuple[str, str, str]] = {  # kind -> mix.unit, encode.pack, encode.overlong
    "pretrain": ("tokens", "best_fit", "split"),
    "sft": ("loss_tokens", "none", "drop_turns"),
    "preference": ("records", "none", "truncate_prompt"),
    "prompt": ("records", "none", "drop"),
}


def format_problems(
    name: str, document: strict_yaml.YamlDocument | None, problems: Iterable[tuple[strict_yaml.Key, str]]
) -> str:
    """``recipe.yaml, line 7: sources.a.path: there is no such file.``, one a line, in the order of the file."""
    lines: dict[str, int] = {}
    for key, text in problems:
        line = document.line(key) if document else None
        where = f"{name}, line {line}" if line else name
        end = "" if text.endswith(("?", ".")) else "."
        lines.setdefault(f"{where}: {'.'.join(map(str, key)) or 'the recipe'}: {text}{end}", line or 0)
    return "\n".join(sorted(lines, key=lines.__getitem__))


def broken_rules(recipe: Recipe) -> list[tuple[Key, str]]:
    """Each broken rule with the key it is about, in words."""
    found: list[tuple[Key, str]] = []
    known = set(recipe.sources) | set(recipe.groups)
    if recipe.validation and recipe.validation.path and HELD_OUT in recipe.sources:
        found.append((("sources", HELD_OUT), "is the name that validation.path takes; rename this source"))
    for name, source in recipe.sources.items():
        if source.group is not None and source.group not in recipe.groups:
            found.append(
                (
                    ("sources", name, "group"),
                    f"no group is called {source.group!r}; groups: {_list(recipe.groups)}",
                )
            )
        if name in recipe.groups:
            found.append((("groups", name), f"{name!r} names both a source and a group; rename one"))
    for group in recipe.groups:
        if not any(s.group == group for s in recipe.sources.values()):
            found.append(
                (
                    ("groups", group),
                    f"no source belongs to the group {group!r}; set `group: {group}` on one",
                )
            )
    wanted: list[tuple[Key, str]] = [
        (("dedupe", "prefer", i), n) for i, n in enumerate(recipe.dedupe.prefer if recipe.dedupe else ())
    ]
    wanted += [
        (("mix", "stages", i, "weights", n), n)
        for i, s in enumerate(recipe.mix.stages)
        for n in s.weights or ()
    ]
    wanted += [(("mix", "replay", "of"), recipe.mix.replay.of)] if recipe.mix.replay else []
    wanted += [(("clean", i, "sources"), n) for i, s in enumerate(recipe.clean) for n in s.sources]
    if isinstance(recipe.mix.size, Epochs):
        wanted += [(("mix", "size", "epochs", n), n) for n in recipe.mix.size.epochs]
    found += [
        (k, f"no source or group is called {n!r}; there are: {_list(known)}")
        for k, n in wanted
        if n not in known
    ]
    return found + _never_weighed(recipe) + _kind_rules(recipe)


def _never_weighed(recipe: Recipe) -> list[tuple[Key, str]]:
    """Sources that no stage gives a weight, where every stage names its weights."""
    stages = recipe.mix.stages
    if not stages or any(s.weights is None for s in stages):
        return []
    named = {name for s in stages for name, weight in (s.weights or {}).items() if weight > 0}
    never = [n for n, source in recipe.sources.items() if n not in named and source.group not in named]
    return [
        (("mix", "stages"), f"no stage weighs {n!r}; give it a weight in one stage, or take it out")
        for n in never
    ]


def _kind_rules(recipe: Recipe) -> list[tuple[Key, str]]:
    found: list[tuple[Key, str]] = []
    allowed = {
        "pretrain": ("split", "drop"),
        "sft": ("drop_turns", "truncate", "drop"),
        "preference": ("truncate_prompt", "drop"),
        "prompt": ("drop",),
    }[recipe.kind]
    if recipe.encode.overlong not in allowed:
        found.append(
            (
                ("encode", "overlong"),
                f"is {recipe.encode.overlong!r}; a {recipe.kind} recipe takes {' or '.join(allowed)}",
            )
        )
    if recipe.encode.max_length is None and recipe.kind != "prompt":
        found.append(
            (
                ("encode", "max_length"),
                f"is missing; a {recipe.kind} recipe needs it (tokens), such as 2048",
            )
        )
    if recipe.encode.pack != "none" and recipe.kind in ("preference", "prompt"):
        found.append(
            (
                ("encode", "pack"),
                f"is {recipe.encode.pack!r}; {recipe.kind} rows are never packed: leave it out",
            )
        )
    if recipe.encode.pack == "concat" and recipe.kind == "sft":
        found.append(
            (("encode", "pack"), "is 'concat', which cuts conversations; sft takes none or best_fit")
        )
    if recipe.encode.fim is not None and recipe.kind != "pretrain":
        found.append(
            (("encode", "fim"), f"cuts documents; a {recipe.kind} recipe has conversations: leave it out")
        )
    if isinstance(recipe.mix.loss_norm, Weighed) and recipe.kind in ("preference", "prompt"):
        found.append(
            (("mix", "loss_norm"), f"weighs rows by their labels; {recipe.kind} rows have none: leave it out")
        )
    if recipe.mix.replay and (recipe.mix.stages or recipe.mix.weights):
        found.append((("mix", "replay"), "replaces weights and stages; keep one of them"))
    return found


def _list(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"
