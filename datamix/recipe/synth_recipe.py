"""The recipe of ``datamix synth``: what a model is asked to write, where it is, what may be spent."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, model_validator

from datamix.core.errors import RecipeError, mask_url
from datamix.core.hashing import digest
from datamix.recipe import strict_yaml
from datamix.recipe.dataset_entries import expand
from datamix.recipe.mistakes import explain
from datamix.recipe.model import format_problems
from datamix.recipe.parts import Count, Model, Name, Paths, Share, Source, Weight
from datamix.recipe.strict_yaml import Key

Synth = Literal["magpie", "sdft", "ssr", "self_instruct", "qa", "answers"]
_FROM_SOURCES = ("sdft", "ssr", "self_instruct", "qa", "answers")
_SIZED = ("magpie", "ssr", "self_instruct")  # which could go on for ever

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
InFlight = Annotated[int, Field(ge=1, le=1000)]


class SynthEndpoint(Model):
    """An OpenAI-compatible host."""

    base_url: Annotated[str, Field(pattern=r"^https?://")]
    """Address of the API, as a rule ending in `/v1`."""
    model: str
    """Name of the model there."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable with the key; where it is not set, none is sent."""
    api_key_file: str | None = None
    """File with the key, instead of the variable; relative to the recipe."""
    max_in_flight: Literal["auto"] | InFlight = "auto"
    """Requests in flight: a number, or as many as make the host faster."""


class SynthTokens(Model):
    """How tokens are drawn."""

    temperature: Annotated[float, Field(ge=0, le=2)]
    """0 is greedy."""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)]
    """The most tokens of one text; longer ones count as unfinished."""
    top_p: Share = 1.0
    """Share of the probability that tokens are drawn from."""


class _Instruction(SynthTokens):
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """0 is greedy."""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 512
    """The most tokens of one text; longer ones count as unfinished."""


class _Answer(SynthTokens):
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """0 is greedy."""
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """The most tokens of one text; longer ones count as unfinished."""


class SynthSampling(Model):
    """How instructions and answers are drawn."""

    instruction: _Instruction = _Instruction()
    """Instructions, inputs and questions."""
    answer: _Answer = _Answer()
    """Answers and rewrites."""


class SynthSystem(Model):
    """A system text that steers topics and languages of instructions (`magpie`)."""

    text: Annotated[str, Field(min_length=1)]
    """The system text."""
    share: Weight = 1.0
    """Its weight among the system texts."""
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")] | None = None
    """Language of its instructions; those in another script are removed."""


class SynthAnswers(Model):
    """Several answers a prompt (`answers`)."""

    n: Annotated[int, Field(ge=1, le=1024)] = 1
    """Answers of each prompt."""
    best: Literal["reference", "agreement", "likelihood", "judge"] | None = None
    """What is best: what the record's reference verifies, what most agree on, what the model is surest of, or its own rating."""
    pairs: bool = False
    """Write preference pairs of the best and the worst."""

    @model_validator(mode="after")
    def _can_choose(self) -> SynthAnswers:
        if self.pairs and (self.n < 2 or self.best is None):
            raise ValueError("pairs need n of 2 or more, and best: what makes one answer better than another")
        if self.best is not None and self.n < 2 and self.best != "reference":
            raise ValueError(f"best: {self.best} chooses among answers; set n to 2 or more")
        return self


class SynthQuestions(Model):
    """Questions out of documents (`qa`)."""

    per_document: Annotated[int, Field(ge=1, le=50)] = 3
    """Questions asked of each document."""


class SynthFilters(Model):
    """What is removed of what the model wrote; empty and unfinished texts always are."""

    language: Annotated[
        tuple[str, ...], BeforeValidator(lambda v: [v] if isinstance(v, str) else v, json_schema_input_type=str | tuple[str, ...])
    ] = ()  # fmt: skip
    """Languages that stay (ISO 639), by an offline detector; needs the extra `language`."""
    refusals: bool = False
    """Remove records whose answer declines, in English or Chinese."""
    min_chars: Annotated[int, Field(ge=1)] | None = None
    """Remove records with a shorter instruction or answer."""
    near: Annotated[float, Field(gt=0, le=1)] | None = None
    """Jaccard similarity (three words) from which an instruction is a near duplicate: of another, of the sources, of `against`."""
    against: Annotated[
        tuple[str, ...],
        BeforeValidator(lambda v: [v] if isinstance(v, str) else v, json_schema_input_type=Paths),
    ] = ()
    """Evaluation sets and other files whose items must not occur."""


class SynthPrice(Model):
    """Price per million tokens."""

    prompt: Price = 0.0
    """Of prompt tokens."""
    completion: Price = 0.0
    """Of completion tokens."""


class SynthBudget(Model):
    """What may be spent over all runs of a folder; it is never passed."""

    requests: Count | None = None
    """Requests, repeated ones included."""
    tokens: Count | None = None
    """Prompt and completion tokens."""
    money: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Money, in the unit of `price`."""
    price: SynthPrice | None = None
    """What tokens cost."""

    @model_validator(mode="after")
    def _is_priced(self) -> SynthBudget:
        if self.money is not None and (self.price is None or not self.price.prompt + self.price.completion):
            raise ValueError("money needs price: {prompt: ..., completion: ...}, per million tokens")
        return self


class SynthRecipe(Model):
    """What a model is asked to write. `SynthRecipe.read(path)` for YAML, `SynthRecipe.of({...}, base)` in Python."""

    name: Name
    """Name of the records; OUT defaults to `./NAME`."""
    synth: Synth
    """What is done."""
    seed: int = 42
    """Seed of every request."""
    tokenizer: str | None = None
    """The model's tokenizer (`magpie`): its chat template gives prefix and stops. A folder, a `tokenizer.json`, or a Hub id."""
    endpoint: SynthEndpoint
    """Where the model is."""
    size: Count | None = None
    """Records that pass the filters; of `sdft`, `qa` and `answers`, absent: all that the sources give."""
    sources: dict[Name, Source] = Field({})
    """What is rewritten, asked or shown, by name, as in a build; of `magpie` what is compared with."""
    sampling: SynthSampling = SynthSampling()
    """How tokens are drawn."""
    systems: tuple[SynthSystem, ...] = ()
    """System texts, each with its share of the records."""
    turns: Annotated[int, Field(ge=1, le=32)] = 1
    """Turns of a conversation (`magpie`)."""
    answers: SynthAnswers = SynthAnswers()
    """Answers of each prompt."""
    qa: SynthQuestions = SynthQuestions()
    """Questions of each document."""
    filters: SynthFilters = SynthFilters()
    """What is removed."""
    budget: SynthBudget = SynthBudget()
    """What may be spent."""
    license: Annotated[str, Field(min_length=1)] | None = None
    """Licence of what the model writes, carried to manifest, report and card."""

    _base: str = PrivateAttr(default=".")

    @property
    def base(self) -> str:
        """The folder that relative paths start from."""
        return self._base

    @classmethod
    def read(cls, path: str | Path, overrides: tuple[str, ...] = ()) -> SynthRecipe:
        """Load a YAML recipe; ``overrides`` are ``key.path=value``. Raises RecipeError with every problem."""
        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise RecipeError(f"There is no recipe at {path}. `datamix schema synth` has its keys.") from None
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"The recipe {path} cannot be read: {error}.") from None
        document = strict_yaml.load(text, str(path))
        value = document.value if document.value is not None else {}
        for override in overrides:
            strict_yaml.set_value(value, override)
        return cls._checked(value, str(file.parent), str(path), document)

    @classmethod
    def of(cls, value: dict[str, Any], base: str | Path = ".") -> SynthRecipe:
        """The same from a plain dict; relative paths start from ``base``."""
        return cls._checked(value, str(base), "recipe", None)

    @classmethod
    def _checked(
        cls, value: Any, base: str, name: str, document: strict_yaml.YamlDocument | None
    ) -> SynthRecipe:
        if not isinstance(value, dict):
            raise RecipeError(f"{name}: a recipe is a map of keys such as name, synth, endpoint.")
        if "synth" not in value and "kind" in value:
            raise RecipeError(
                f"{name}: is the recipe of a build (`kind: {value['kind']}`): run `datamix build {name}`."
            )
        if "sources" in value:
            value = {**value, "sources": expand(value["sources"], base)}
        try:
            recipe = cls.model_validate(value)
        except ValidationError as error:
            raise RecipeError(format_problems(name, document, explain(error, cls))) from None
        if problems := _broken_rules(recipe):
            raise RecipeError(format_problems(name, document, problems))
        recipe._base = base
        return recipe

    @property
    def model_name(self) -> str:
        """The model's name as records and manifest hold it: of a path on this machine only the last part."""
        name = self.endpoint.model
        return PurePath(name).name if name.startswith(("/", "~")) else name

    def published(self) -> dict[str, Any]:
        """The resolved recipe as the manifest holds it: where the host is and how its key is found are left out."""
        value = self.model_dump(mode="json")
        value["endpoint"] = {"model": self.model_name}
        for source in value["sources"].values():
            source["path"] = [mask_url(path) for path in source["path"]]
        value["filters"]["against"] = [mask_url(path) for path in value["filters"]["against"]]
        return value

    def sha256(self) -> str:
        """The fingerprint of the published recipe."""
        return digest(self.published())


def _broken_rules(recipe: SynthRecipe) -> list[tuple[Key, str]]:
    kind = recipe.synth
    rules: list[tuple[bool, Key, str]] = [
        (
            kind == "magpie" and recipe.tokenizer is None,
            ("tokenizer",),
            "is missing; the chat template of the model's tokenizer gives the beginning of a user's turn",
        ),
        (kind in _SIZED and recipe.size is None, ("size",), f"is missing; {kind} needs a number of records"),
        (
            kind in _FROM_SOURCES and not recipe.sources,
            ("sources",),
            f"is missing; {kind} needs what is {'rewritten' if kind == 'sdft' else 'asked or shown'}",
        ),
        (
            kind != "magpie" and bool(recipe.systems),
            ("systems",),
            f"steers instructions of magpie; {kind} has none: remove it",
        ),
        (kind != "magpie" and recipe.turns > 1, ("turns",), f"is of magpie; {kind} has one: remove it"),
        (
            kind != "answers" and recipe.answers != SynthAnswers(),
            ("answers",),
            f"is of `synth: answers`; this is {kind}: remove it",
        ),
        (kind != "qa" and recipe.qa != SynthQuestions(), ("qa",), f"is of `synth: qa`; this is {kind}: remove it"),
        (
            recipe.answers.n > 1 and recipe.sampling.answer.temperature == 0,
            ("sampling", "answer", "temperature"),
            f"is 0, so all {recipe.answers.n} answers of a prompt would be the same; set it to about 0.8",
        ),
    ]  # fmt: skip
    return [(key, text) for broken, key, text in rules if broken]
