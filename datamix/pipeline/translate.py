"""Translate the recipe into the options each stage takes: what each phase is asked to do.

Pure functions; the only files read are packed rows, for their sizes (``available``).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from datamix import mix
from datamix.clean import STEPS, PreferenceChecks, Step, require
from datamix.core.contracts import Receipt
from datamix.core.errors import RecipeError, nearest
from datamix.core.hashing import canonical
from datamix.dedup import DedupeSpec, DuplicateFields, LineSpec, NearSpec
from datamix.pipeline.order_rows import dealt_rows, row_costs
from datamix.pipeline.prepare_sources import SourceWork
from datamix.pipeline.record_rules import Band, RecordRules
from datamix.pipeline.scan import SourceRequest
from datamix.pipeline.score_rules import ScoreBand, ScoreBucket, ScoreRules, WantedScores
from datamix.recipe.mistakes import describe
from datamix.recipe.mixture import Epochs, Temperature
from datamix.recipe.model import Recipe
from datamix.recipe.parts import HELD_OUT, CleanStep, Keep, RankScore
from datamix.tokenize import EncodeSpec, TokenizerFiles

LEAK = DedupeSpec(exact=True, near=NearSpec())


# what trainers by reinforcement and self-distillation read beside a prompt and its reference
_PROMPT_FIELDS = ("data_source", "verifier", "env", "privileged_context", "completions", "labels")


def source_works(recipe: Recipe, encode: EncodeSpec | None, sample: int | None) -> list[SourceWork]:
    """What every source of the recipe asks of the phases."""
    works: list[SourceWork] = []
    fields = _PROMPT_FIELDS if recipe.kind == "prompt" else ()
    for name, source in recipe.sources.items():
        kwargs = {**recipe.chat_template_kwargs, **source.chat_template_kwargs}
        columns = tuple(sorted(source.columns.items()))
        works.append(
            SourceWork(
                SourceRequest(name, source.path, recipe.base, source.format, source.encoding, columns),
                recipe.kind,
                source.system,
                tuple(dict.fromkeys((*source.keep_meta, *fields))),
                canonical(kwargs) if source.chat_template_kwargs else None,
                source.media,
                cleaning_steps(recipe, name),
                recipe.max_reject_share,
                encode,
                recipe.encode.max_length,
                recipe.overlong,
                signing_spec(recipe),
                line_spec(recipe),
                limit=sample,
                scores=wanted_scores(recipe, name),
                rules=RecordRules(
                    tuple(Band(k.field, k.min, k.max) for k in kept(recipe, name) if k.field),
                    recipe.validation.group_by if recipe.validation else None,
                    recipe.encode.thinking,
                    recipe.encode.thinking == "keep" or recipe.encode.inline_tags == "parse",
                ),
            )
        )
    if recipe.validation is not None and recipe.validation.path:
        request = SourceRequest(HELD_OUT, recipe.validation.path, recipe.base)
        steps = cleaning_steps(recipe, HELD_OUT)
        works.append(
            replace(
                works[0],
                request=request,
                system=None,
                keep_meta=fields,
                kwargs=None,
                steps=steps,
                rules=replace(works[0].rules, keep=()),
            )
        )
    return works


def signing_spec(recipe: Recipe) -> DedupeSpec | None:
    """Which keys records need: those of dedupe, and near ones where a split must not leak."""
    asked = dedupe_spec(recipe)
    if asked is not None and (asked.near is not None or recipe.validation is None):
        return asked
    return LEAK if recipe.validation is not None else DedupeSpec() if recipe.decontaminate else asked


def dedupe_spec(recipe: Recipe) -> DedupeSpec | None:
    """The recipe's ``dedupe`` as the room takes it."""
    asked = recipe.dedupe
    if asked is None:
        return None
    near = None
    if asked.near is not None:
        near = NearSpec(
            threshold=asked.near.threshold,
            ngram=asked.near.ngram,
            num_perm=asked.near.num_perm,
            verify=asked.near.verify,
        )
    fields = DuplicateFields(asked.fields.exact, asked.fields.near)
    rank = "score" if isinstance(asked.rank, RankScore) else asked.rank
    return DedupeSpec(asked.exact, near, asked.scope, asked.keep, rank, fields, asked.normalize)


def line_spec(recipe: Recipe) -> LineSpec | None:
    """The recipe's ``dedupe.lines`` as the room takes it."""
    asked = recipe.dedupe.lines if recipe.dedupe else None
    return None if asked is None else LineSpec(asked.max_documents, asked.unit, asked.match, asked.min_chars)


def encode_spec(recipe: Recipe, tokenizer: TokenizerFiles) -> EncodeSpec:
    """The recipe's ``encode`` as the room takes it."""
    return EncodeSpec(
        kind=recipe.kind,
        tokenizer=tokenizer,
        loss_on=recipe.encode.loss_on,
        mask=recipe.encode.mask,
        special_text=recipe.encode.special_text,
        inline_tags=recipe.encode.inline_tags,
        chat_kwargs=canonical(recipe.chat_template_kwargs),
        fim_rate=recipe.encode.fim.rate if recipe.encode.fim else 0.0,
        fim_seed=recipe.seed if recipe.encode.fim else 0,
    )


def ranks(recipe: Recipe) -> tuple[int, ...]:
    """``dedupe.prefer`` (sources or groups) first, then the order of ``sources``."""
    prefer = recipe.dedupe.prefer if recipe.dedupe else ()
    last = len(prefer)
    ranks = []
    for position, (name, source) in enumerate(recipe.sources.items()):
        places = [i for i, preferred in enumerate(prefer) if preferred in (name, source.group)]
        # By a score the best record of all sources of equal preference is kept, not that of the first source.
        position = 0 if recipe.dedupe and isinstance(recipe.dedupe.rank, RankScore) else position
        ranks.append(min(places, default=last) * len(recipe.sources) + position)
    return (*ranks, -1) if recipe.validation is not None and recipe.validation.path else tuple(ranks)


def cleaning_steps(recipe: Recipe, source: str) -> tuple[Step, ...]:
    """The cleaning steps that a source goes through. Raises RecipeError for an unknown step or option."""
    steps = tuple(
        Step(step.name, step_options(step), step.fields, step.sources)
        for step in recipe.clean
        if step.name != "keep" and applies(recipe, step, source)
    )
    require(steps)
    return steps


def applies(recipe: Recipe, step: CleanStep, source: str) -> bool:
    """Whether a cleaning step is for a source; the buckets of a source are meant with it."""
    asked = recipe.sources.get(source)
    whole = asked.bucket.of if asked is not None and asked.bucket is not None else source
    return not step.sources or source in step.sources or whole in step.sources


def kept(recipe: Recipe, source: str) -> list[Keep]:
    """The bands of a source: its own, and those of cleaning steps."""
    steps = [s for s in recipe.clean if s.name == "keep" and applies(recipe, s, source)]
    return [*recipe.sources[source].keep, *(Keep.model_validate(s.options) for s in steps)]


def score_rules(recipe: Recipe, source: str) -> ScoreRules:
    """What the recipe asks of a source by scores."""
    if source not in recipe.sources:  # a validation file of its own
        return ScoreRules(source)
    bucket, rank = recipe.sources[source].bucket, recipe.dedupe.rank if recipe.dedupe else None
    return ScoreRules(
        bucket.of if bucket else source,
        tuple(ScoreBand(k.score, k.min, k.max) for k in kept(recipe, source) if k.score),
        ScoreBucket(bucket.score, bucket.quantiles, bucket.number) if bucket else None,
        rank.score if isinstance(rank, RankScore) else None,
    )


def wanted_scores(recipe: Recipe, source: str) -> WantedScores | None:
    """The scores that a source needs, and the files that should hold them."""
    if not recipe.scores:
        return None
    return WantedScores(score_rules(recipe, source), score_files(recipe))


def score_files(recipe: Recipe) -> tuple[str, ...]:
    """The recipe's files of scores, as they are opened."""
    return tuple(os.path.join(recipe.base, os.path.expanduser(path)) for path in recipe.scores)


def forbids_contradictions(recipe: Recipe, source: str) -> bool:
    """Whether the recipe asks that a source's pairs contradict no others."""
    return recipe.kind == "preference" and any(
        isinstance(step.options, PreferenceChecks) and step.options.contradictions
        for step in cleaning_steps(recipe, source)
    )


def step_options(step: CleanStep) -> Any:
    """The options of one cleaning step as its own type. Raises RecipeError."""
    if step.name == "keep":
        try:
            return Keep.model_validate(step.options)
        except ValidationError as error:
            first = error.errors()[0]
            known = list(Keep.model_fields)
            where = ".".join(map(str, first["loc"]))
            raise RecipeError(f"{where}: {describe(first, first['loc'], known)}".removeprefix(": ")) from None
    if step.name not in STEPS:
        close = nearest(step.name, list(STEPS))
        hint = f"did you mean {close}?" if close else f"the steps are {', '.join(STEPS)}"
        raise RecipeError(f"no cleaning step has this name; {hint}")
    known = list(getattr(STEPS[step.name], "__dataclass_fields__", {}))
    unknown = [name for name in step.options if name not in known]
    if unknown:
        close = nearest(unknown[0], known)
        hint = f"did you mean {close}?" if close else f"its options: {', '.join(known) or 'none'}"
        raise RecipeError(f"{unknown[0]!r} is not an option of this step; {hint}")
    for name, value in step.options.items():
        if isinstance(value, int) and abs(value) >= 2**63:
            raise RecipeError(f"{name}: should be below 9,223,372,036,854,775,808 (2^63)")
    try:
        return TypeAdapter(STEPS[step.name]).validate_python(step.options)
    except ValidationError as error:
        key = error.errors()[0]["loc"]
        raise RecipeError(f"{'.'.join(map(str, key))}: {describe(error.errors()[0], key, known)}") from None


def groups(recipe: Recipe, among: Sequence[str] | None = None) -> dict[str, mix.MixGroup]:
    """The recipe's groups with their members; ``among`` some sources: the groups that have members there."""
    by_name: dict[str, mix.MixGroup] = {}
    for name, group in recipe.groups.items():
        members = {
            n: s for n, s in recipe.sources.items() if s.group == name and (among is None or n in among)
        }
        inner = {n: s.weight for n, s in members.items() if s.weight is not None}
        if members:
            by_name[name] = mix.MixGroup(tuple(members), group.weight, group.within, inner)
    return by_name


def available_rows(name: str, costs: NDArray[np.int64], max_epochs: float, cap: int | None) -> mix.Available:
    """What a source of rows ``costs`` ``[num_rows]`` can give."""
    smallest = int(costs.min()) if len(costs) else 0
    return mix.Available(
        name, len(costs), int(costs.sum()), max_epochs, int(costs.max(initial=0)), smallest, cap
    )


def available(recipe: Recipe, packed: Sequence[Receipt], scale: float = 1.0) -> list[mix.Available]:
    """What every source can give, in the unit of the mixture; ``scale``: of a seeded part of its rows."""
    bins = [r.folder / "train.arrow" for r in packed]
    rows = [dealt_rows(b, scale, recipe.seed, n) for b, n in zip(bins, recipe.sources, strict=True)]
    costs = [row_costs(b, recipe.unit)[r] for b, r in zip(bins, rows, strict=True)]
    epochs = [s.max_epochs for s in recipe.sources.values()]
    caps: Sequence[int | None] = [None] * len(packed)
    if not all(float(e).is_integer() for e in epochs):
        caps = mix.caps(costs, epochs, recipe.seed, list(recipe.sources))
    return [available_rows(*row) for row in zip(recipe.sources, costs, epochs, caps, strict=True)]


def quota(recipe: Recipe, sources: Sequence[mix.Available], rows_known: bool = False) -> mix.Quota:
    """How much of each source, and when; ``rows_known``: a schedule over the rows follows.

    Raises RecipeError where the caps cannot give what is asked.
    """
    planned = stages(recipe, sources)
    weighed = [
        i for i in range(len(sources)) if any(s.weights[i] or (s.ramp_to or s.weights)[i] for s in planned)
    ]

    def only(weights: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(weights[i] for i in weighed)

    def spread(values: tuple[float, ...]) -> tuple[float, ...]:
        known = dict(zip(weighed, values, strict=True))
        return tuple(known.get(i, 0.0) for i in range(len(sources)))  # 0 for those that a sweep leaves out

    present = [replace(s, weights=only(s.weights), ramp_to=s.ramp_to and only(s.ramp_to)) for s in planned]
    asked = recipe.mix.size
    size = dict(asked.epochs) if isinstance(asked, Epochs) else asked
    # the set shrinks by what is excluded, and keeps its shares
    on_short = "shrink" if recipe.exclude and recipe.mix.on_short == "error" else recipe.mix.on_short
    try:
        solved = mix.solve([sources[i] for i in weighed], present, recipe.unit, size, on_short, rows_known)
    except mix.TooFewEpochs as error:
        key = ("sources", error.source, "max_epochs")
        raise RecipeError(recipe.format_problems([(key, str(error))])) from None
    plans = tuple(
        replace(p, weights=spread(p.weights), ramp_to=p.ramp_to and spread(p.ramp_to)) for p in solved.stages
    )
    return replace(solved, stages=plans, taken=spread(solved.taken), epochs=spread(solved.epochs))


def weights(recipe: Recipe, sources: Sequence[mix.Available]) -> tuple[float, ...]:
    """The weights of the whole, by rule or as given; 0 for sources of which ``exclude`` left nothing."""
    live = [s for s in sources if s.rows]
    names, sizes = [s.name for s in live], [float(s.cost) for s in live]
    among = groups(recipe, names)
    if recipe.mix.replay is not None:
        made = mix.replay(names, recipe.mix.replay.of, recipe.mix.replay.share, sizes, among)
    else:
        rule = recipe.mix.weights
        given = {n: w for n in names if (w := recipe.sources[n].weight) is not None}
        plain = {"temperature": rule.temperature} if isinstance(rule, Temperature) else rule
        budget = float(recipe.mix.size) if isinstance(recipe.mix.size, int) else None
        most = [s.most for s in live]
        made = mix.source_weights(names, given, among, plain, sizes, most, budget)
    by_name = dict(zip(names, made, strict=True))
    return tuple(by_name.get(s.name, 0.0) for s in sources)


def stages(recipe: Recipe, sources: Sequence[mix.Available]) -> list[mix.MixStage]:
    """The recipe's stages; a set without any is one stage named ``main``."""
    if not recipe.mix.stages:
        return [mix.MixStage("main", 1.0, None, weights(recipe, sources))]
    sizes = {s.name: float(s.cost) for s in sources if s.rows}
    among = groups(recipe, list(sizes))
    planned: list[mix.MixStage] = []
    for stage in recipe.mix.stages:
        if stage.weights is None:
            target = weights(recipe, sources)
        else:
            gone = {*recipe.sources, *recipe.groups} - {*sizes, *among}  # all of them excluded
            given = {n: w for n, w in stage.weights.items() if n not in gone}
            made = mix.stage_weights(list(sizes), given, among, list(sizes.values()))
            by_name = dict(zip(sizes, made, strict=True))
            target = tuple(by_name.get(s.name, 0.0) for s in sources)
        if stage.ramp is not None and planned:
            last = planned[-1].ramp_to or planned[-1].weights
            planned.append(mix.MixStage(stage.name, stage.share, stage.size, last, target))
        else:
            planned.append(mix.MixStage(stage.name, stage.share, stage.size, target))
    return planned
