"""The parts of a recipe, each a typed value: sources, cleaning, deduplication, encoding, the mixture, outputs."""

from __future__ import annotations

import codecs
import itertools
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


def _not_tiny(value: float) -> float:
    if 0 < value < _LEAST_WEIGHT:
        raise ValueError(
            f"is {value:g}; a weight is at least {_LEAST_WEIGHT:g}, for weights are compared with each other"
        )
    return value


def _encoding(value: str) -> str:
    try:
        is_text = codecs.lookup(value)._is_text_encoding
    except (LookupError, ValueError):
        is_text = False
    if not is_text:
        raise ValueError(
            f"is {value!r}, which is no encoding of text; write utf-8, gb18030, utf-16 or another, or leave it out"
        )
    return value


_Size = Annotated[str, Field(pattern=r"^\s*[0-9]+(\.[0-9]+)?\s*[KMBkmb]\s*$")]  # 50M
Count = Annotated[
    int, BeforeValidator(_count, json_schema_input_type=Annotated[int, Field(gt=0)] | _Size), Field(gt=0)
]
_OneOrMore = str | Annotated[tuple[str, ...], Field(min_length=1)]
Paths = Annotated[
    tuple[str, ...],
    BeforeValidator(_several, json_schema_input_type=_OneOrMore),
    Field(min_length=1),
]
Share = Annotated[float, Field(gt=0, le=1)]
_LEAST_WEIGHT = 1e-12  # below it, or above its inverse, sums of float64 lose what is weighed
Weight = Annotated[float, Field(gt=0, le=1 / _LEAST_WEIGHT, allow_inf_nan=False), AfterValidator(_not_tiny)]
StageWeight = Annotated[
    float, Field(ge=0, le=1 / _LEAST_WEIGHT, allow_inf_nan=False), AfterValidator(_not_tiny)
]
NumEpochs = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)]
Encoding = Annotated[str, AfterValidator(_encoding)]
Name = Annotated[str, Field(pattern=_NAME), AfterValidator(_name)]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, use_attribute_docstrings=True)


class Keep(Model):
    """Records whose number in a field, or whose score, is inside a band."""

    # What is absent is left out of the resolved recipe, so that its fingerprint is that of recipes without the key.
    field: Annotated[str | None, Field(exclude_if=lambda value: value is None)] = None
    """The field with the number."""
    score: Annotated[str | None, Field(exclude_if=lambda value: value is None)] = None
    """Name of a score of a file in `scores`, instead of a field."""
    min: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """The smallest number that stays."""
    max: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """The largest number that stays."""

    @model_validator(mode="after")
    def _is_a_band(self) -> Keep:
        if (self.field is None) == (self.score is None):
            raise ValueError("takes either field or score")
        if self.min is None and self.max is None:
            raise ValueError("takes min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}: no number is between them")
        return self


def _rising(value: tuple[float, ...]) -> tuple[float, ...]:
    if any(not 0 < q < 1 for q in value) or any(a >= b for a, b in itertools.pairwise(value)):
        raise ValueError("should rise between 0 and 1, such as [0.5, 0.9]")
    return value


Quantiles = Annotated[tuple[float, ...], Field(min_length=1, max_length=20), AfterValidator(_rising)]


class Cut(Model):
    score: str
    """Name of a score of a file in `scores`."""
    quantiles: Quantiles
    """Where to cut, as shares of the source's records."""


class Buckets(Cut):
    """A source cut by a score into buckets, each a source of its own: NAME-1 has the lowest scores."""

    weights: tuple[Weight, ...] | None = None
    """Weights of the buckets, the lowest first; absent: by what each has."""

    @model_validator(mode="after")
    def _one_weight_each(self) -> Buckets:
        parts = len(self.quantiles) + 1
        if self.weights is not None and len(self.weights) != parts:
            raise ValueError(f"takes {parts} weights, one a bucket, and has {len(self.weights)}")
        return self


class Bucket(Cut):
    """One bucket of a source, as the resolved recipe holds it."""

    of: str
    """The source that was cut."""
    number: Annotated[int, Field(ge=1)]
    """Which bucket, from 1 for the lowest scores."""


class Source(Model):
    """One corpus: where it is, what it holds, how much of it is used."""

    path: Paths
    """Files, globs, folders or addresses, relative to the recipe."""
    format: str = "auto"
    """Record format; `auto` recognises it by content."""
    columns: dict[str, str] = {}
    """Field names of the format and where this file has them."""
    encoding: Encoding | None = None
    """Character encoding; absent: detected."""
    group: str | None = None
    """The group whose weight this source shares."""
    weight: Weight | None = None
    """Weight of this source, any positive number."""
    max_epochs: NumEpochs = 1.0
    """How often a record may be used, over all stages."""
    max_records: Count | None = None
    """A seeded sample of so many records."""
    system: str | None = None
    """System turn for records without one."""
    keep: Annotated[
        tuple[Keep, ...],
        BeforeValidator(
            lambda v: [v] if isinstance(v, dict) else v, json_schema_input_type=Keep | tuple[Keep, ...]
        ),
    ] = ()
    """Only records whose number in a field is inside a band."""
    keep_meta: tuple[str, ...] = ()
    """Fields carried to the emitted rows."""
    buckets: Annotated[Buckets | None, Field(exclude_if=lambda value: value is None)] = None
    """Cut the source by a score into buckets with weights of their own."""
    bucket: Annotated[Bucket | None, Field(exclude_if=lambda value: value is None)] = None
    """Which bucket of a source this is; `buckets` writes it."""
    media: Literal["reject", "keep"] = "reject"  # images, videos, audios beside the text
    """Images, videos and audio beside the text: rejected, or kept for text exports that can hold them."""
    chat_template_kwargs: dict[str, Any] = {}
    """Variables of the chat template for this source."""
    # Left out of the resolved recipe where absent, so that its fingerprint is that of recipes without the key.
    license: Annotated[str | None, Field(min_length=1, exclude_if=lambda value: value is None)] = None
    """Licence of the source, carried to the manifest, the report and the card."""


class Group(Model):
    """Sources that share one weight."""

    weight: Weight
    """Weight of the group, any positive number."""
    within: Literal["proportional", "weights"] = "proportional"
    """How the group's weight is divided: by what each source has, or by the sources' weights."""


class CleanStep(Model):
    """One cleaning step: its name, its options, and where it applies."""

    name: str
    """Name of the step."""
    options: dict[str, Any] = {}
    """Its options."""
    sources: tuple[str, ...] = ()
    """Sources it applies to; absent: all."""
    fields: Literal["prompt", "answer", "all"] = "all"
    """Which turns the step looks at."""

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
    """Jaccard similarity from which two texts are near duplicates."""
    ngram: Annotated[int, Field(ge=1, le=50)] = 5
    """Words per n-gram."""
    num_perm: Annotated[int, Field(ge=8, le=1024)] | None = None
    """Values per signature; absent: chosen for a recall of 0.995 at the threshold."""
    verify: bool = True
    """Decide candidates by exact Jaccard."""


class Fields(Model):
    """Which words of a record are compared; absent: the rule of its kind."""

    exact: Literal["prompt", "answer", "all"] | None = None
    """Words compared for exact duplicates."""
    near: Literal["prompt", "answer", "all"] | None = None
    """Words compared for near duplicates."""


class Lines(Model):
    """Lines or paragraphs that occur in more than ``max_documents`` documents are cut from all of them."""

    max_documents: Annotated[int, Field(ge=1)]
    """A line in more documents than this is cut from all."""
    unit: Literal["line", "paragraph"] = "line"
    """Lines or paragraphs."""
    match: Literal["text", "words"] = "text"
    """Compare text, or only words (without case, punctuation and digits)."""
    min_chars: Annotated[int, Field(ge=1)] = 12
    """Shorter lines stay."""


class RankScore(Model):
    score: str
    """Name of a score of a file in `scores`: the record with the highest is kept."""


class Dedupe(Model):
    exact: bool = True
    """Remove records with equal text."""
    normalize: bool = False
    """Compare exact duplicates in NFKC, lower case, with single spaces."""
    fields: Fields = Fields()
    """Which words of a record are compared; absent: by its kind."""
    lines: Lines | None = None
    """Cut lines or paragraphs that repeat over documents."""
    near: Annotated[
        Near | None,
        BeforeValidator(
            lambda value: {True: {}, False: None}[value] if isinstance(value, bool) else value,
            json_schema_input_type=Near | bool | None,
        ),
    ] = None
    """Near duplicates by MinHash, verified by exact Jaccard; `true` for the defaults."""
    prefer: tuple[str, ...] = ()
    """Sources or groups whose records are kept first."""
    rank: Literal["first", "longest"] | RankScore = "first"
    """Among records of equal preference, keep the first, the longest, or the one with the highest score."""
    scope: Literal["across", "within"] = "across"
    """Compare across all sources or within each."""
    keep: Annotated[int, Field(ge=1)] = 1
    """Records kept per cluster."""
    against: Annotated[
        tuple[str, ...], BeforeValidator(_several, json_schema_input_type=str | tuple[str, ...])
    ] = ()
    """Earlier sets or files; removes from this recipe's sources only."""
    max_removed_share: Annotated[float, Field(ge=0, le=1)] = 0.9
    """The largest share of a source that may be removed; more stops the build."""


class Against(Model):
    path: Paths
    """Files, globs or folders."""
    format: str = "auto"
    """Record format, as in `sources`."""
    columns: dict[str, str] = {}
    """Field names, as in `sources`."""


class Decontaminate(Model):
    against: Annotated[tuple[Against, ...], Field(min_length=1)]
    """Evaluation files."""
    ngram: Annotated[int, Field(ge=1, le=100)] = 13
    """Length of a matching run, in words."""
    min_overlap: Share = 0.5
    """Share of an item's words that must match."""
    fields: Literal["prompt", "answer", "all"] = "prompt"
    """Which words are compared."""


class Validation(Model):
    share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of each source's records."""
    records: Count | None = None
    """Records of each source."""
    group_by: str | None = None
    """A field; records with the same value stay on one side."""
    path: Annotated[
        tuple[str, ...], BeforeValidator(_several, json_schema_input_type=str | tuple[str, ...])
    ] = ()
    """Files of their own."""

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
    """Share of the documents that are split."""


class Encode(Model):
    max_length: Annotated[int, Field(ge=8, lt=2**31)] | None = None
    """Longest row in tokens; required except for `prompt`."""
    pack: Literal["none", "concat", "best_fit"] | None = None
    """Several records in one row; by default `best_fit` for `pretrain`, else `none`."""
    loss_on: Literal["all", "assistant", "last_assistant", "final_answer"] = "assistant"
    """What is trained; `final_answer` is the last assistant turn without calls."""
    mask: tuple[Literal["tool_args", "tool_names"], ...] = ()
    """Parts of tool calls that are not trained: arguments, names of functions (`sft` only)."""
    overlong: Literal["split", "drop_turns", "truncate", "truncate_prompt", "drop"] | None = None
    """What happens to records that are too long; the default depends on the kind."""
    special_text: Literal["text", "reject", "allow"] = "text"
    """Control tokens that occur in the data: text, rejected, or allowed as control."""
    inline_tags: Literal["parse", "text"] = "parse"
    """Read `<think>` and `<tool_call>` in answers as reasoning and calls, or leave them as text."""
    thinking: Literal["keep", "drop", "last"] = (
        "keep"  # reasoning in answers: of all, of none, behind the last question
    )
    """Reasoning of assistant turns: encoded as the template does, left out, or only that of the last turn."""
    fim: FillInTheMiddle | None = None
    """Fill in the middle, for code (`pretrain` only)."""


class Output(Model):
    name: str
    """Name of the format."""
    options: dict[str, Any] = {}
    """Its options."""

    @model_validator(mode="before")
    @classmethod
    def _from_one_key_map(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and "name" not in value and len(value) == 1:
            name, options = next(iter(value.items()))
            return {"name": name, "options": options or {}}
        return value
