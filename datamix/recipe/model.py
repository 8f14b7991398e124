"""The recipe: what a training set is made of, as one typed value that YAML and Python share.

Only this module, ``parts`` and ``mistakes`` use pydantic: it reports every error at once; the YAML gives the lines; the
published JSON Schema (``schemas/recipe.schema.json``) is generated from these classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, model_validator

from datamix.core.errors import RecipeError, mask_url, nearest
from datamix.core.hashing import digest
from datamix.core.records import Kind
from datamix.read import published_path
from datamix.recipe import excluded, strict_yaml
from datamix.recipe.buckets import expand_buckets, score_problems
from datamix.recipe.dataset_entries import expand
from datamix.recipe.excluded import Exclude, Licenses
from datamix.recipe.mistakes import explain
from datamix.recipe.mixture import Epochs, Mix, Weighed
from datamix.recipe.parts import (
    HELD_OUT,
    CleanStep,
    Decontaminate,
    Dedupe,
    Encode,
    Group,
    Model,
    Name,
    Output,
    Source,
    Validation,
    _several,
)
from datamix.recipe.strict_yaml import Key

_MAX_BEST_FIT = 1 << 27  # tokens a row


class Recipe(Model):
    """What a training set is made of. ``Recipe.read(path)`` for YAML, ``Recipe.of({...}, base)`` in Python."""

    name: Name
    """Name of the set; OUT defaults to `./NAME`."""
    kind: Kind
    """What is built."""
    seed: int = 42
    """Seed of every order, sample and split."""
    tokenizer: str
    """A folder with `tokenizer.json`, a `tokenizer.json`, or a Hub id."""
    chat_template: str | None = None
    """A Jinja file that replaces the tokenizer's chat template."""
    chat_template_kwargs: dict[str, Any] = Field({})
    """Variables passed to the chat template."""
    sources: Annotated[dict[Name, Source], Field(min_length=1)]
    """The corpora, by name."""
    groups: dict[Name, Group] = Field({})
    """Groups of sources that share one weight, by name."""
    licenses: Annotated[Licenses | None, Field(exclude_if=lambda value: value is None)] = None
    """Which licences sources may have; absent: any, or none."""
    exclude: Annotated[Exclude, Field(exclude_if=lambda value: not value)] = ()
    """Records that are left out: one by one, by file, by licence; a list or a file of them."""
    scores: Annotated[
        tuple[str, ...],
        BeforeValidator(_several, json_schema_input_type=str | tuple[str, ...]),
        Field(exclude_if=lambda value: not value),
    ] = ()
    """Files that `datamix score` wrote."""
    clean: tuple[CleanStep, ...] = ()
    """Cleaning steps, in order."""
    dedupe: Dedupe | None = None
    """Deduplication; absent: none."""
    decontaminate: Decontaminate | None = None
    """Removal of records that contain evaluation items; absent: none."""
    validation: Validation | None = None
    """What is held out of training; absent: nothing."""
    encode: Encode = Encode()
    """Tokenizing, masks, lengths and packing."""
    mix: Mix = Mix()
    """Unit, size, caps and stages of the mixture."""
    max_reject_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    """The largest share of a source's records that may be rejected; more stops the build."""
    write: tuple[Output, ...] = (Output(name="parquet"),)
    """Output formats: names, or one-key maps with options."""

    _base: str = PrivateAttr(default=".")
    _name: str = PrivateAttr(default="recipe")
    _document: strict_yaml.YamlDocument | None = PrivateAttr(default=None)

    @property
    def base(self) -> str:
        """The folder that relative paths start from."""
        return self._base

    def at(self, base: str) -> Recipe:
        """The same recipe with relative paths that start from another spelling of its folder."""
        moved = self.model_copy()
        moved._base = base
        return moved

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
        """Fill what the contract's table gives each kind, so that the resolved recipe holds it."""
        if isinstance(value, dict):
            value = expand_buckets(value)
        kind = value.get("kind") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in DEFAULTS:
            return value
        unit, pack, overlong = DEFAULTS[kind]
        mix, encode = value.get("mix") or {}, value.get("encode") or {}
        if isinstance(mix, dict) and mix.get("unit") is None:
            value = {**value, "mix": {**mix, "unit": unit}}
        if isinstance(encode, dict):
            filled = {k: v for k, v in (("pack", pack), ("overlong", overlong)) if encode.get(k) is None}
            value = {**value, "encode": {**encode, **filled}}
        return value

    @classmethod
    def read(cls, path: str | Path, overrides: tuple[str, ...] = ()) -> Recipe:
        """Load a YAML recipe; ``overrides`` are ``key.path=value``. Raises RecipeError with every problem."""
        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise RecipeError(
                f"There is no recipe at {path}. `datamix init DATA -o {file.name}` writes one."
            ) from None
        except (IsADirectoryError, NotADirectoryError, UnicodeDecodeError) as error:
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
                f"{name}: a recipe is a map of keys such as name, kind, sources; this is "
                f"{'a list' if isinstance(value, list) else 'text'}."
            )
        if "synth" in value:
            raise RecipeError(
                f"{name}: asks a model for records (`synth: {value['synth']}`): run `datamix synth {name}`, and name the "
                "folder that it writes as the path of a source."
            )
        if "sources" in value:
            value = {**value, "sources": expand(value["sources"], base)}
        if "exclude" in value:
            value = {**value, "exclude": excluded.expand(value["exclude"], base)}
        try:
            recipe = cls.model_validate(value)
        except ValidationError as error:
            raise RecipeError(format_problems(name, document, explain(error, cls))) from None
        problems = broken_rules(recipe)
        if problems:
            raise RecipeError(format_problems(name, document, problems))
        recipe._base, recipe._name, recipe._document = base, name, document
        return recipe

    def format_problems(self, problems: Iterable[tuple[Key, str]]) -> str:
        """Problems of this recipe, one a line in the order of the file: file, line, key, what is wrong."""
        return format_problems(self._name, self._document, problems)

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default filled in, paths as written: what the manifest holds."""
        return self.model_dump(mode="json")

    def published(self) -> dict[str, Any]:
        """The resolved recipe as manifests hold it: without secrets of URLs and places of files (``<SOURCE>/...``)."""
        masked: dict[str, Any] = _changed_paths(self.resolved(), published_path)
        return masked

    def with_places(self) -> dict[str, Any]:
        """The resolved recipe with the places of files as written, secrets of URLs masked: what a cache holds."""
        masked: dict[str, Any] = _changed_paths(self.resolved(), mask_url)
        return masked

    def sha256(self) -> str:
        """The fingerprint of the published recipe: another password in a URL, or place of the files, is the same recipe."""
        return digest(self.published())


def _changed_paths(value: Any, change: Callable[[str], str], is_path: bool = False) -> Any:
    """The same value with every path in it changed."""
    if isinstance(value, dict):
        return {k: _changed_paths(v, change, k in _PATH_KEYS) for k, v in value.items()}
    if isinstance(value, list):
        return [_changed_paths(item, change, is_path) for item in value]
    return change(value) if is_path and isinstance(value, str) else value


_PATH_KEYS = ("path", "against", "tokenizer", "chat_template", "scores")


DEFAULTS: dict[str, tuple[str, str, str]] = {  # kind -> mix.unit, encode.pack, encode.overlong
    "pretrain": ("tokens", "best_fit", "split"),
    "sft": ("loss_tokens", "none", "drop_turns"),
    "preference": ("records", "none", "truncate_prompt"),
    "prompt": ("records", "none", "drop"),
}
OVERLONG: dict[Kind, tuple[str, ...]] = {
    "pretrain": ("split", "drop"),
    "sft": ("drop_turns", "truncate", "drop"),
    "preference": ("truncate_prompt", "drop"),
    "prompt": ("drop",),
}


def format_problems(
    name: str, document: strict_yaml.YamlDocument | None, problems: Iterable[tuple[Key, str]]
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
    problems: list[tuple[Key, str]] = []
    groups = _list(recipe.groups)
    if recipe.validation and recipe.validation.path and HELD_OUT in recipe.sources:
        problem = "is the name that validation.path takes; rename this source"
        problems.append((("sources", HELD_OUT), problem))
    for name, source in recipe.sources.items():
        if source.group is not None and source.group not in recipe.groups:
            problem = f"no group is called {source.group!r}; groups: {groups}"
            problems.append((("sources", name, "group"), problem))
        if name in recipe.groups:
            problems.append((("groups", name), f"{name!r} names both a source and a group; rename one"))
    for name, text in forbidden_licenses(recipe).items():
        problems.append((("sources", name, "license"), text))
    for group in recipe.groups:
        if not any(s.group == group for s in recipe.sources.values()):
            problem = f"no source belongs to the group {group!r}; set `group: {group}` on one"
            problems.append((("groups", group), problem))
    stages = recipe.mix.stages
    names: list[tuple[Key, str]] = []  # of sources or groups, where the recipe refers to them
    names += [
        (("dedupe", "prefer", i), n) for i, n in enumerate(recipe.dedupe.prefer if recipe.dedupe else ())
    ]
    names += [(("mix", "stages", i, "weights", n), n) for i, s in enumerate(stages) for n in s.weights or ()]
    names += [(("mix", "replay", "of"), recipe.mix.replay.of)] if recipe.mix.replay else []
    names += [(("clean", i, "sources"), n) for i, s in enumerate(recipe.clean) for n in s.sources]
    if isinstance(recipe.mix.size, Epochs):
        names += [(("mix", "size", "epochs", n), n) for n in recipe.mix.size.epochs]
    known = set(recipe.sources) | set(recipe.groups)
    for key, name in names:
        if name not in known:
            close = nearest(name, known)
            hint = f"did you mean {close}?" if close else f"there are: {_list(known)}"
            problems.append((key, f"no source or group is called {name!r}; {hint}"))
    if stages and all(s.weights is not None for s in stages):
        weighed = {name for s in stages for name, weight in (s.weights or {}).items() if weight > 0}
        for name, source in recipe.sources.items():
            if name not in weighed and source.group not in weighed:
                problem = f"no stage weighs {name!r}; give it a weight in one stage, or remove the source"
                problems.append((("mix", "stages"), problem))
    problems += score_problems(recipe.scores, recipe.sources, recipe.clean, recipe.dedupe)
    return problems + _weight_rules(recipe) + _kind_rules(recipe)


def _weight_rules(recipe: Recipe) -> list[tuple[Key, str]]:
    """Weights that are missing beside others, or given beside a rule: known before anything is read."""
    mix = recipe.mix
    if mix.replay is not None or (mix.stages and all(s.weights is not None for s in mix.stages)):
        return []
    weighed = [n for n, s in recipe.sources.items() if s.weight is not None and s.group is None]
    weighed += list(recipe.groups)
    if mix.weights is not None and weighed:
        problem = f"is a rule, and {', '.join(sorted(weighed))} {'has a weight' if len(weighed) == 1 else 'have weights'}; keep one of the two"
        return [(("mix", "weights"), problem)]
    problems: list[tuple[Key, str]] = []
    for name, source in recipe.sources.items():
        if source.group is None and source.weight is None and weighed:
            have = f"{', '.join(weighed)} {'has' if len(weighed) == 1 else 'have'} one"
            advice = "give it one, set `group:`," if recipe.groups else "give it one,"
            problem = (
                f"has no weight, and {have}; {advice} or remove all weights: each record is used once then"
            )
            problems.append((("sources", name), problem))
        group = recipe.groups.get(source.group or "")
        if group is not None and group.within == "weights" and source.weight is None:
            problem = f"has no weight, and groups.{source.group} shares by weights; give it one, or set within: proportional"
            problems.append((("sources", name), problem))
    return problems


def forbidden_licenses(recipe: Recipe) -> dict[str, str]:
    """Sources that ``licenses.allow`` does not allow, each with what is wrong; upper and lower case are one."""
    allow = recipe.licenses.allow if recipe.licenses else ()
    names, problems = {name.casefold() for name in allow}, {}
    for name, source in recipe.sources.items() if allow else ():
        if source.license is None:
            problems[name] = (
                f"is missing, and licenses.allow takes only {', '.join(allow)}: add the source's licence, or remove the source"
            )
        elif source.license.casefold() not in names:
            problems[name] = (
                f"is {source.license!r}, and licenses.allow takes only {', '.join(allow)}: allow it there, or remove the source"
            )
    return problems


def _kind_rules(recipe: Recipe) -> list[tuple[Key, str]]:
    """What a kind of recipe needs and cannot take."""
    kind, encode, mix = recipe.kind, recipe.encode, recipe.mix
    unpacked = kind in ("preference", "prompt")
    allowed = OVERLONG[kind]
    rules: list[tuple[bool, Key, str]] = [
        (
            encode.overlong not in allowed,
            ("encode", "overlong"),
            f"is {encode.overlong!r}; a {kind} recipe takes {' or '.join(allowed)}",
        ),
        (
            encode.max_length is None and kind != "prompt",
            ("encode", "max_length"),
            f"is missing; a {kind} recipe needs it (tokens), such as 2048",
        ),
        (
            encode.pack == "best_fit" and (encode.max_length or 0) > _MAX_BEST_FIT,
            ("encode", "max_length"),
            f"is {encode.max_length:,}; best_fit keeps a number a length, for at most {_MAX_BEST_FIT:,}: lower it, or set pack: none"
            if encode.max_length
            else "",
        ),
        (
            encode.pack != "none" and unpacked,
            ("encode", "pack"),
            f"is {encode.pack!r}; {kind} rows are never packed: leave it out",
        ),
        (
            encode.pack == "concat" and kind == "sft",
            ("encode", "pack"),
            "is 'concat', which cuts conversations; sft takes none or best_fit",
        ),
        (
            encode.fim is not None and kind != "pretrain",
            ("encode", "fim"),
            f"cuts documents; a {kind} recipe has conversations: leave it out",
        ),
        (
            bool(encode.mask) and kind != "sft",
            ("encode", "mask"),
            f"is about the calls of sft records; leave it out of a {kind} recipe",
        ),
        (
            isinstance(mix.loss_norm, Weighed) and unpacked,
            ("mix", "loss_norm"),
            f"weighs rows by their labels; {kind} rows have none: leave it out",
        ),
        (
            mix.replay is not None and bool(mix.stages or mix.weights),
            ("mix", "replay"),
            "replaces weights and stages; keep one of them",
        ),
    ]
    return [(key, text) for broken, key, text in rules if broken]


def _list(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"
