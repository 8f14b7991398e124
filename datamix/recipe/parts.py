"""The parts of a recipe, each a typed value: sources, cleaning, deduplication, encoding, the mixture, outputs."""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

_SUFFIX = {"K": 10**3, "M": 10**6, "B": 10**9}
HELD_OUT = "validation"  # the source that `validation: {path: ...}` makes
# Letters and digits of any script, _ . and -: all of ASCII but these is excluded, the rest is checked by `_name`.
_NAME = r"^[^\x00-\x2f:-@\[-^`{-\x7f\s][^\x00-,/:-@\[-^`{-\x7f\s]{0,99}$"
_NAME_BYTES = 100  # names become names of files


def _count(value: Any) -> Any:
    """``"50M"`` -> 50000000; whole numbers pass."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMB])\s*", value, re.IGNORECASE)
        if match is None:
            raise ValueError("should be a whole number, or a number with K, M or B, such as 50M")
        return round(float(match[1]) * _SUFFIX[match[2].upper()])
    return value


def _name(value: str) -> str:
    """A name that is safe as a file name and reads the same everywhere: composed, without symbols of any script."""
    if value != unicodedata.normalize("NFC", value):
        raise ValueError(f"is {value!r} with decomposed letters; write it composed (Unicode NFC)")
    odd = [c for c in value if unicodedata.category(c)[0] not in "LNM" and c not in "_.-"]
    if odd:
        raise ValueError(f"is {value!r} and holds {odd[0]!r}; a name takes letters, digits, _ . and -")
    if len(value.encode()) > _NAME_BYTES:
        raise ValueError(
            f"is {value!r}; a name is at most {_NAME_BYTES} bytes long in UTF-8, because files are named by it"
        )
    return value


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Count = Annotated[int, BeforeValidator(_count), Field(gt=0)]
Paths = Annotated[tuple[str, ...], BeforeValidator(_several), Field(min_length=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=_NAME), AfterValidator(_name)]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class Keep(Model):
    """Records whose number in a field is inside a band."""

    field: str
    min: Annotated[float, Field(allow_inf_nan=False)] | None = None
    max: Annotated[float, Field(allow_inf_nan=False)] | None = None

    @model_validator(mode="after")
    def _is_a_band(self) -> Keep:
        if self.min is None and self.max is None:
            raise ValueError("takes min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}: no number is between them")
        return self


class Source(Model):
    """One corpus: where it is, what it holds, how much of it is used."""

    path: Paths
    format: str = "auto"
    columns: dict[str, str] = {}
    encoding: str | None = None
    group: str | None = None
    weight: Weight | None = None
    max_epochs: Weight = 1.0
    max_records: Count | None = None
    system: str | None = None
    keep: Annotated[tuple[Keep, ...], BeforeValidator(lambda v: [v] if isinstance(v, dict) else v)] = ()
    keep_meta: tuple[str, ...] = ()
    media: Literal["reject", "keep"] = "reject"  # images, videos, audios beside the text
    chat_template_kwargs: dict[str, Any] = {}
    # Left out of the resolved recipe where absent, so that its fingerprint is that of recipes without the key.
    license: Annotated[str | None, Field(min_length=1, exclude_if=lambda value: value is None)] = None


class Licenses(Model):
    """Which licences sources may have."""

    allow: Annotated[tuple[str, ...], Field(min_length=1)]


class Group(Model):
    """Sources that share one weight."""

    weight: Weight
    within: Literal["proportional", "weights"] = "proportional"


class CleanStep(Model):
    """One cleaning step: its name, its options, and where it applies."""

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
        options = value[names[0]] if value[names[0]] is not None else {}
        if not isinstance(options, dict):
            raise ValueError(f"`{names[0]}` takes a map of its options, such as `length: {{min_chars: 2}}`")
        options = dict(options)
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
    """Lines or paragraphs that occur in more than ``max_documents`` documents are cut from all of them."""

    max_documents: Annotated[int, Field(ge=1)]
    unit: Literal["line", "paragraph"] = "line"
    match: Literal["text", "words"] = "text"
    min_chars: Annotated[int, Field(ge=1)] = 12


class Dedupe(Model):
    exact: bool = True
    normalize: bool = False
    fields: Fields = Fields()
    lines: Lines | None = None
    near: Annotated[
        Near | None,
        BeforeValidator(lambda value: {True: {}, False: None}[value] if isinstance(value, bool) else value),
    ] = None
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
    group_by: str | None = None
    path: Annotated[tuple[str, ...], BeforeValidator(_several)] = ()

    @model_validator(mode="after")
    def _one_of_three(self) -> Validation:
        if sum((self.share is not None, self.records is not None, bool(self.path))) != 1:
            raise ValueError("takes exactly one of share, records, path")
        if self.group_by is not None and self.path:
            raise ValueError("group_by goes with share or records: a file of its own is held out whole")
        return self


class FillInTheMiddle(Model):
    """Documents cut in three and written prefix, suffix, middle: for code models."""

    rate: Share = 0.5  # of the documents


class Encode(Model):
    max_length: Annotated[int, Field(ge=8)] | None = None
    pack: Literal["none", "concat", "best_fit"] | None = None
    loss_on: Literal["all", "assistant", "last_assistant", "final_answer"] = "assistant"
    mask: tuple[Literal["tool_args", "tool_names"], ...] = ()
    overlong: Literal["split", "drop_turns", "truncate", "truncate_prompt", "drop"] | None = None
    special_text: Literal["text", "reject", "allow"] = "text"
    inline_tags: Literal["parse", "text"] = "parse"
    thinking: Literal["keep", "drop", "last"] = (
        "keep"  # reasoning in answers: of all, of none, behind the last question
    )
    fim: FillInTheMiddle | None = None


class Epochs(Model):
    """A size given as "this source so many times"."""

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

    @model_validator(mode="before")
    @classmethod
    def _with_names(cls, value: Any) -> Any:
        """A stage without a name is called by its number."""
        stages = value.get("stages") if isinstance(value, dict) else None
        if not isinstance(stages, list | tuple):
            return value
        named = [
            {"name": f"stage-{n}", **stage} if isinstance(stage, dict) else stage
            for n, stage in enumerate(stages, 1)
        ]
        return {**value, "stages": named}

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
