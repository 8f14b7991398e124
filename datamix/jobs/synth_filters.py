"""Which of the records that a model wrote stay: filters in order, each removal with its reason, then the choice among what passed.

Near duplicates and evaluation items are found by the engine of a build, on the words of the questions. Filters look at stored answers
alone: other filters ask the model nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from datamix.clean.language import Language, judge_language
from datamix.core.records import texts
from datamix.dedup import ContaminationSpec, DedupeSpec, NearSpec, dedupe, find, index_items
from datamix.jobs.synth_sources import Job
from datamix.pipeline.prepare import read_batches
from datamix.pipeline.prepare_sources import BuildContext, SourceWork, prepare_sources
from datamix.pipeline.scan import SourceRequest
from datamix.recipe.synth_recipe import SynthRecipe
from datamix.synthesis.calls import Draft
from datamix.synthesis.selection import Stratum, quartiles, select, strata
from datamix.synthesis.text_checks import fits_language, is_refusal

NGRAM = 3  # words: instructions are short


@dataclass(frozen=True)
class Verdict:
    """Why a record is removed; None: it stays."""

    reason: str | None = None
    kept: str = ""  # the index of the record that stays instead, or the name of what it was compared with
    similarity: float | None = None


@dataclass(frozen=True)
class References:
    """What records are compared with: questions of the sources, and texts of the evaluation sets."""

    questions: pa.Array
    evals: tuple[pa.Array, ...] = ()


def question(draft: Draft) -> str:
    """The first user's turn."""
    return next((str(t["content"]) for t in draft.messages if t["role"] == "user"), "")


def answer(draft: Draft) -> str:
    """The last assistant's turn."""
    return next(
        (str(t.get("content") or "") for t in reversed(draft.messages) if t["role"] == "assistant"), ""
    )


def read_references(recipe: SynthRecipe, job: Job, context: BuildContext) -> References:
    """The questions of the sources and the items of ``filters.against``."""
    asked: list[str] = []
    if job.makes_prompts and recipe.synth != "qa":
        asked = [
            next((str(t.get("content") or "") for t in r.messages if t["role"] == "user"), "")
            for r in job.records
        ]
    evals: list[pa.Array] = []
    if recipe.filters.against:
        request = SourceRequest("against", recipe.filters.against, recipe.base)
        for source in prepare_sources(context, [SourceWork(request, "native")]):
            for part in source.shards.parts:
                evals += [texts(b, source.kind, "prompt") for b in read_batches(str(part.records))]
    return References(pa.array(asked, pa.string()), tuple(evals))


def judge(drafts: Sequence[Draft], job: Job, references: References) -> list[Verdict]:
    """The verdict on each record, in order."""
    verdicts = [Verdict(draft.reason) for draft in drafts]
    if job.recipe.synth != "sdft":  # there the gate has looked, and the original stays
        for place, draft in enumerate(drafts):
            if verdicts[place].reason is None and (reason := _plain_reason(draft, job.recipe)):
                verdicts[place] = Verdict(reason)
        _judge_languages(drafts, job.recipe.filters.language, verdicts)
    _judge_contamination(drafts, references.evals, verdicts)
    if job.recipe.filters.near is not None or job.makes_prompts:
        _judge_duplicates(drafts, job, references, verdicts)
    return verdicts


def _plain_reason(draft: Draft, recipe: SynthRecipe) -> str | None:
    filters, asked, told = recipe.filters, question(draft), answer(draft)
    language = draft.meta.get("language")
    if language and not fits_language(asked, language):
        return "language"
    if filters.min_chars is not None and min(len(asked.strip()), len(told.strip())) < filters.min_chars:
        return "min_chars"
    return "refusal" if filters.refusals and is_refusal(told) else None


def _judge_languages(drafts: Sequence[Draft], languages: tuple[str, ...], verdicts: list[Verdict]) -> None:
    places = [n for n, verdict in enumerate(verdicts) if verdict.reason is None] if languages else []
    if not places:
        return
    for words in (question, answer):
        found = judge_language(pa.array([words(drafts[n]) for n in places], pa.string()), Language(languages))
        for n, reason in zip(places, found.to_pylist(), strict=True):
            if reason is not None and verdicts[n].reason is None:
                verdicts[n] = Verdict("language")


def _judge_contamination(
    drafts: Sequence[Draft], evals: tuple[pa.Array, ...], verdicts: list[Verdict]
) -> None:
    places = [n for n, verdict in enumerate(verdicts) if verdict.reason is None] if evals else []
    if not places:
        return
    spec = ContaminationSpec()
    whole = ["\n".join(str(t.get("content") or "") for t in drafts[n].messages) for n in places]
    matches = find(index_items(evals, spec), pa.array(whole, pa.string()))
    for row, share in zip(matches.records.tolist(), matches.shares.tolist(), strict=True):
        verdicts[places[row]] = Verdict("contaminated", "against", round(float(share), 4))


def _judge_duplicates(
    drafts: Sequence[Draft], job: Job, references: References, verdicts: list[Verdict]
) -> None:
    """Questions that are those of a reference or of an earlier record, or nearly."""
    places = [n for n, verdict in enumerate(verdicts) if verdict.reason is None]
    near = job.recipe.filters.near
    before = pa.concat_arrays([references.questions, *(a.cast(pa.string()) for a in references.evals)])
    before = before if near is not None or job.makes_prompts else before.slice(0, 0)
    asked = pa.array([question(drafts[n]) for n in places], pa.string())
    if not len(asked):
        return
    spec = DedupeSpec(near=NearSpec(near, NGRAM) if near is not None else None)
    found = dedupe(pa.table({"text": pa.concat_arrays([before, asked])}), "text", spec).removed
    for row, method, kept, similarity in zip(*(found.column(n).to_pylist() for n in _REMOVED), strict=True):
        if row >= len(before):
            name = drafts[places[kept - len(before)]].index if kept >= len(before) else "sources"
            reason = "duplicate" if method == "exact" else "near_duplicate"
            verdicts[places[row - len(before)]] = Verdict(reason, name, round(float(similarity), 4))


_REMOVED = ("row", "method", "kept_row", "similarity")


def choose(drafts: Sequence[Draft], verdicts: list[Verdict], job: Job) -> list[Verdict]:
    """The verdicts with ``not_chosen`` for what passed beyond the size, in the proportions of the sources where there are any."""
    size = job.recipe.size
    passed = [n for n, verdict in enumerate(verdicts) if verdict.reason is None]
    if size is None or len(passed) <= size:
        return verdicts
    reference: list[Stratum] = []
    lengths = [len(answer(drafts[n])) for n in passed]
    borders = quartiles(lengths)
    if job.is_open and job.records:
        known = [len(record.reference or "") for record in job.records]
        borders = quartiles(known)
        asked = ["\n".join(str(t.get("content") or "") for t in record.messages) for record in job.records]
        reference = strata([""] * len(known), asked, known, borders)
    categories = [str(drafts[n].meta.get("language") or "") if not reference else "" for n in passed]
    found = strata(categories, [question(drafts[n]) for n in passed], lengths, borders)
    chosen = {passed[place] for place in select(found, size, reference)}
    return [
        Verdict("not_chosen") if verdict.reason is None and n not in chosen else verdict
        for n, verdict in enumerate(verdicts)
    ]
