"""The recipe: what a training set is made of, as one typed value that YAML and Python share.

Pydantic stands here and nowhere else: it reports every error at once; the YAML gives the lines; the published JSON
Schema (``schemas/recipe.schema.json``) is generated from these classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from datamix.errors import RecipeError
from datamix.identity import digest
from datamix.recipe import strict_yaml
from datamix.recipe.mistakes import explain
from datamix.records import Kind

_SUFFIX = {"K": 10**3, "M": 10**6, "B": 10**9}
HELD_OUT = "validation"  # the source that `validation: {path: ...}` makes
_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.\-]{0,99}$"


def _count(value: Any) -> Any:
    """``"50M"`` -> 50000000; whole numbers pass."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMB])\s*", value, re.IGNORECASE)
        if match is None:
            raise ValueError("should be a whole number, or a number with K, M or B, such as 50M")
        return round(float(match[1]) * _SUFFIX[match[2].upper()])
    return value


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _near(value: Any) -> Any:
    return {} if value is True else None if value is False else value


Count = Annotated[int, BeforeValidator(_count), Field(gt=0)]
Paths = Annotated[tuple[str, ...], BeforeValidator(_several), Field(min_length=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=_NAME)]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Source(Model):
    """One corpus: where it lies, what it is, how much of it is wanted."""

    path: Paths
    format: str = "auto"
    columns: dict[str, str] = {}
    encoding: str | None = None
    group: str | None = None
    weight: Weight | None = None
    max_epochs: Weight = 1.0
    max_records: Count | None = None
    system: str | None = None
    keep_meta: tuple[str, ...] = ()
    chat_template_kwargs: dict[str, Any] = {}


class Group(Model):
    """Sources that share one weight."""

    weight: Weight
    within: Literal["proportional", "weights"] = "proportional"


class CleanStep(Model):
    """One cleaning step: its name, its options, and what it is for."""

    name: str
    options: dict[str, Any] = {}
    sources: tuple[str, ...] = ()
    fields: Literal["prompt", "answer", "all"] = "all"

    @model_validator(mode="before")
    @classmethod
    def _from_one_key_map(cls, value: Any) -> Any:
        """``{length: {min_chars: 2, fields: answer}}`` -> name, options, fields."""
        if isinstance(value, str):
            return {"name": value}
        if not isinstance(value, dict) or "name" in value:
            return value
        outer = {k: v for k, v in value.items() if k in ("sources", "fields")}
        names = [k for k in value if k not in outer]
        if len(names) != 1:
            raise ValueError("should be one step, such as `length: {min_chars: 2}`")
        options = (
            dict(value[names[0]] or {}) if isinstance(value[names[0]], dict | None) else {"": value[names[0]]}
        )
        outer.update({k: options.pop(k) for k in ("sources", "fields") if k in options})
        return {"name": names[0], "options": options, **outer}


class Near(Model):
    """MinHash LSH, candidates verified by exact Jaccard."""

    threshold: Annotated[float, Field(gt=0, le=1)] = 0.8
    ngram: Annotated[int, Field(ge=1, le=50)] = 5
    num_perm: Annotated[int, Field(ge=8, le=1024)] | None = None
    verify: bool = True


class Fields(Model):
    """Which words of a record are compared; absent: the rule of its kind."""

    exact: Literal["prompt", "answer", "all"] | None = None
    near: Literal["prompt", "answer", "all"] | None = None


class Lines(Model):
    """Lines or paragraphs that stand in more than ``max_documents`` documents are cut from all of them."""

    max_documents: Annotated[int, Field(ge=1)]
    unit: Literal["line", "paragraph"] = "line"
    match: Literal["text", "words"] = "text"
    min_chars: Annotated[int, Field(ge=1)] = 12


class Dedupe(Model):
    exact: bool = True
    normalize: bool = False
    fields: Fields = Fields()
    lines: Lines | None = None
    near: Annotated[Near | None, BeforeValidator(_near)] = None
    prefer: tuple[str, ...] = ()
    rank: Literal["first", "longest"] = "first"
    scope: Literal["across", "within"] = "across"
    keep: Annotated[int, Field(ge=1)] = 1
    against: Annotated[tuple[str, ...], BeforeValidator(_several)] = ()
    max_removed_share: Annotated[float, Field(ge=0, le=1)] = 0.9


class Against(Model):
    path: Paths
    format: str = "auto"
    columns: dict[str, str] = {}


class Decontaminate(Model):
    against: Annotated[tuple[Against, ...], Field(min_length=1)]
    ngram: Annotated[int, Field(ge=1, le=100)] = 13
    min_overlap: Share = 0.5
    fields: Literal["prompt", "answer", "all"] = "prompt"


class Validation(Model):
    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    records: Count | None = None
    path: Annotated[tuple[str, ...], BeforeValidator(_several)] = ()

    @model_validator(mode="after")
    def _one_of_three(self) -> Validation:
        if sum((self.share is not None, self.records is not None, bool(self.path))) != 1:
            raise ValueError("takes exactly one of share, records, path")
        return self


class FillInTheMiddle(Model):
    """Documents cut in three and written prefix, suffix, middle: for code models."""

    rate: Share = 0.5  # of the documents


class Encode(Model):
    max_length: Annotated[int, Field(ge=8)] | None = None
    pack: Literal["none", "concat", "best_fit"] | None = None
    loss_on: Literal["all", "assistant", "last_assistant"] = "assistant"
    overlong: Literal["split", "drop_turns", "truncate", "truncate_prompt", "drop"] | None = None
    special_text: Literal["text", "reject", "allow"] = "text"
    inline_tags: Literal["parse", "text"] = "parse"
    fim: FillInTheMiddle | None = None


class Epochs(Model):
    """A size said as "this source so many times"."""

    epochs: Annotated[dict[str, Weight], Field(min_length=1, max_length=1)]


class Temperature(Model):
    temperature: Weight


class Stage(Model):
    name: Name
    share: Share | None = None
    size: Count | None = None
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = None
    ramp: Literal["linear"] | None = None


class Replay(Model):
    of: str
    share: Annotated[float, Field(gt=0, lt=1)]


LossNorm = Literal["token", "example"]


class Weighed(Model):
    """Rows of a column ``weight``, by which a trainer that averages the loss over one counts as if over the other."""

    trainer: LossNorm
    wanted: LossNorm

    @model_validator(mode="after")
    def _differ(self) -> Weighed:
        if self.trainer == self.wanted:
            raise ValueError(f"weighs nothing where both are the same; write loss_norm: {self.trainer}")
        return self


class Mix(Model):
    unit: Literal["records", "tokens", "loss_tokens"] | None = None
    size: Count | Epochs | None = None
    on_short: Literal["error", "shrink", "reweigh"] = "error"
    weights: Literal["proportional", "unimax"] | Temperature | None = None
    stages: tuple[Stage, ...] = ()
    replay: Replay | None = None
    loss_norm: LossNorm | Weighed | None = None

    @model_validator(mode="after")
    def _stages_add_up(self) -> Mix:
        shares = [s.share for s in self.stages]
        if any((s.share is None) == (s.size is None) for s in self.stages):
            raise ValueError("each stage takes either share or size")
        if all(x is not None for x in shares) and shares and abs(sum(x or 0 for x in shares) - 1) > 1e-9:
            raise ValueError(f"the stages' shares sum to {sum(x or 0 for x in shares):g}, not 1")
        if any(x is None for x in shares) and any(x is not None for x in shares):
            raise ValueError("stages are sized either all by share or all by size")
        names = [s.name for s in self.stages]
        if len(set(names)) != len(names):
            raise ValueError("two stages have the same name")
        if self.stages and self.stages[0].ramp:
            raise ValueError("the first stage has nothing to ramp from")
        return self

    @property
    def averaged_over(self) -> LossNorm | None:
        """What the loss is averaged over in the end, the rows' weights counted."""
        return self.loss_norm.wanted if isinstance(self.loss_norm, Weighed) else self.loss_norm


class Output(Model):
    name: str
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _from_one_key_map(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and "name" not in value and len(value) == 1:
            name, options = next(iter(value.items()))
            return {"name": name, "options": options or {}}
        return value


class Recipe(Model):
    """What a training set is made of. ``Recipe.read(path)`` for YAML, ``Recipe.of({...}, base)`` in Python."""

    name: Name
    kind: Kind
    seed: int = 42
    tokenizer: str
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = {}
    sources: Annotated[dict[Name, Source], Field(min_length=1)]
    groups: dict[Name, Group] = {}
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
