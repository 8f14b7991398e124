"""Score every record of a file or of a recipe's sources, and leave ``scores.parquet``: ``datamix score``.

Records are read, shaped and cleaned as in a build and, where a model reads tokens, encoded with its tokenizer, chat template and masks;
all of it is cached. Then parts of some records are scored, one task each, so that a run that was stopped goes on with the next
part. What a score needs first (counts of n-grams, a trained classifier) are tasks too. Costs what the score costs; memory is one part.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix.core.arrays import open_batch
from datamix.core.contracts import Receipt, Task
from datamix.core.errors import RecipeError, mask_url
from datamix.core.hashing import digest, file_sha256
from datamix.jobs.output_files import check_outputs, complete_files
from datamix.jobs.score_parts import (
    ImportanceSpec,
    LinearSpec,
    PartSpec,
    ScoresById,
    fit_importance_task,
    fit_linear_task,
    parts_of,
    score_part,
)
from datamix.pipeline import prepare_sources, translate
from datamix.pipeline.engine import LocalEngine
from datamix.pipeline.prepare_sources import BuildContext, PreparedSource, SourceWork
from datamix.pipeline.progress import Screen
from datamix.pipeline.scan import SourceRequest
from datamix.pipeline.shards import identities
from datamix.pipeline.steps import Options, open_context
from datamix.read import find
from datamix.recipe import Recipe
from datamix.scoring import (
    Classifier,
    EndpointLikelihood,
    FastText,
    Likelihood,
    LinearClassifier,
    Method,
    NgramImportance,
    ScoredFile,
    Scorer,
    parse_method,
    write_scores,
)
from datamix.scoring.linear import require_sklearn
from datamix.scoring.score_table import is_scores
from datamix.tokenize import EncodeSpec, find_tokenizer

_VERSION = 1
_MODEL_ROWS, _TEXT_ROWS = 64, 4096  # records of a task
_FIT = ("domain", "good", "other")  # names of what scores are fitted from


@dataclass(frozen=True)
class ScoredSource:
    """What one source's records scored."""

    name: str
    num_records: int
    scores: NDArray[np.float64]  # of those that have one

    def __str__(self) -> str:
        head = f"{self.name}: {len(self.scores):,} of {self.num_records:,} records have a score"
        if not len(self.scores):
            return head
        low, middle, high = np.quantile(self.scores, [0.05, 0.5, 0.95])
        return f"{head}; mean {self.scores.mean():.4g}, 5 % {low:.4g}, median {middle:.4g}, 95 % {high:.4g}"


@dataclass(frozen=True)
class Scores:
    """What ``datamix score`` wrote."""

    path: Path
    name: str
    sources: tuple[ScoredSource, ...]
    note: str = ""

    def __str__(self) -> str:
        lines = [*map(str, self.sources), *([self.note] if self.note else [])]
        return "\n".join([*lines, f"Wrote {self.path}: scores {self.name}"])


def score(
    path: str, by: str, output: Path, options: Options, name: str | None = None, screen: Screen | None = None
) -> Scores:
    """Score the records of a file, a folder or a recipe (``.yaml``). Raises DatamixError with what to do."""
    method = parse_method(by)
    recipe = Recipe.read(path) if Path(path).suffix in (".yaml", ".yml") else None
    inputs = [path] if recipe else find([path], ".")
    check_outputs([output], [p for p in inputs if "://" not in p], overwrite=is_scores(output))
    if method.name == "linear":
        require_sklearn()
    context = open_context(options, screen or Screen(quiet=True), [options.cache])  # no set is written
    try:
        sources, fitted = _prepared(context, method, recipe, path)
        job = _Job(context, method, sources, fitted)
        values = job.run()
    finally:
        context.close()
    title = name or method.name
    with complete_files([output], overwrite=True) as (draft,):
        write_scores(draft, title, mask_url(by), list(_by_file(sources, values, bool(recipe))))
    found = [ScoredSource(s.name, len(v), v[~np.isnan(v)]) for s, v in zip(sources, values, strict=True)]
    return Scores(output, title, tuple(found), job.note)


def _by_file(
    sources: Sequence[PreparedSource], values: Sequence[NDArray[np.float64]], named: bool
) -> Iterator[ScoredFile]:
    """Scores by input file; a record that gave several has the mean of theirs."""
    first = 0
    for source, scores in zip(sources, values, strict=True):
        known = identities(source.shards.parts)
        for number, file in enumerate(source.files, first):
            at = np.flatnonzero((known.file == number) & ~np.isnan(scores))
            records, place = np.unique(known.record[at], return_inverse=True)
            means = np.bincount(place, scores[at], len(records)) / np.bincount(place, minlength=len(records))
            yield ScoredFile(source.name if named else "", file.label, file.sha256, records, means)
        first += len(source.files)


def _prepared(
    context: BuildContext, method: Method, recipe: Recipe | None, path: str
) -> tuple[list[PreparedSource], list[PreparedSource]]:
    """The sources that are scored, and those that the score is fitted from."""
    keep_meta = ("id",) if method.name == "jsonl" else ()
    if recipe is None:
        works = [SourceWork(SourceRequest(mask_url(path), (path,), "."), "native", keep_meta=keep_meta)]
    else:
        works = [_work(work, keep_meta) for work in _distinct(recipe)]
    if method.name in ("nll", "ifd"):
        works = _with_tokens(context, works, method, recipe)
    names = _FIT[:1] if method.name == "dsir" else _FIT[1:] if method.name == "linear" else ()
    given = method.target.split(",") if method.name == "linear" else [method.target]
    for name, target in zip(names, given, strict=False):
        paths = tuple(target.split(",")) if name == "domain" else (target,)
        works.append(SourceWork(SourceRequest(f"--by {method.name} ({name})", paths, "."), "native"))
    sources = prepare_sources.prepare_sources(context, works)
    split = len(works) - len(names)
    return sources[:split], sources[split:]


def _distinct(recipe: Recipe) -> Iterator[SourceWork]:
    """The works of a recipe's sources; the buckets of a source are one again."""
    for work in translate.source_works(recipe, None, None):
        source = recipe.sources.get(work.request.source)
        if source is not None and (source.bucket is None or source.bucket.number == 1):
            name = source.bucket.of if source.bucket else work.request.source
            yield replace(work, request=replace(work.request, source=name))


def _work(work: SourceWork, keep_meta: tuple[str, ...]) -> SourceWork:
    """What a build asks of a source, without what scores do not need."""
    rules = replace(work.rules, group_by=None)
    carried = tuple(dict.fromkeys((*work.keep_meta, *keep_meta)))
    return replace(
        work,
        encode=None,
        scores=None,
        dedupe=None,
        lines=None,
        max_length=None,
        rules=rules,
        keep_meta=carried,
    )


def _with_tokens(
    context: BuildContext, works: Sequence[SourceWork], method: Method, recipe: Recipe | None
) -> list[SourceWork]:
    """The works with the tokenizer of the model. Raises RecipeError for records whose likelihood is not defined."""
    by = f"--by {method.name}:{mask_url(method.target)}"
    at_endpoint = method.detail is not None
    template = recipe.chat_template if recipe else None
    if recipe is not None and at_endpoint:
        tokenizer = find_tokenizer(recipe.tokenizer, recipe.base, template)
    else:
        try:
            wanted = (
                method.detail or os.path.abspath(method.target)
                if os.path.exists(method.target)
                else method.target
            )
            tokenizer = find_tokenizer(method.detail or wanted, recipe.base if recipe else ".", template)
        except RecipeError as error:
            hint = (
                " Score a recipe, whose tokenizer is then the model's." if at_endpoint and not recipe else ""
            )
            raise RecipeError(f"{by}: {error}{hint}") from None
    result = []
    for work, files in zip(works, prepare_sources.scan_sources(context, works), strict=True):
        kind = recipe.kind if recipe else prepare_sources.record_kind(work, files)
        if kind not in ("text", "pretrain", "sft") or (method.name == "ifd" and kind != "sft"):
            needs = "conversations" if method.name == "ifd" else "texts and conversations"
            raise RecipeError(
                f"{by}: {work.request.source} holds {kind} records, and {method.name} is of {needs}. "
                "`datamix convert` makes conversations of pairs."
            )
        loss_on = recipe.encode.loss_on if recipe else "assistant"
        encode = EncodeSpec("sft" if kind == "sft" else "pretrain", tokenizer, loss_on)
        result.append(replace(work, encode=encode))
    return result


class _Job:
    """One score of all sources, part by part."""

    def __init__(
        self,
        context: BuildContext,
        method: Method,
        sources: Sequence[PreparedSource],
        fitted: Sequence[PreparedSource],
    ) -> None:
        self._context, self._method, self._sources, self._fitted = context, method, sources, fitted
        self.note = ""

    def run(self) -> list[NDArray[np.float64]]:
        """The scores of every source's prepared records."""
        scorer, identity = self._scorer()
        is_model = isinstance(scorer, Likelihood | EndpointLikelihood | Classifier)
        rows = _MODEL_ROWS if is_model else _TEXT_ROWS
        parts = [list(parts_of(source, rows)) for source in self._sources]
        groups = [
            [self._task(replace(part, scorer=scorer), key, identity) for part, key in of] for of in parts
        ]
        tasks = [task for group in groups for task in group]
        # A model is loaded once, in this process, and uses the processors itself.
        context = replace(self._context, engine=LocalEngine(1)) if is_model else self._context
        receipts = iter(context.run("score", tasks))
        found = [[open_batch(next(receipts).folder / "scores.arrow") for _ in group] for group in groups]
        empty = np.empty(0, np.float64)
        return [np.concatenate([empty, *(b.column("score").to_numpy() for b in of)]) for of in found]

    def _task(self, part: PartSpec, key: str, identity: str) -> Task:
        place = [part.batch, part.start, part.stop, part.kind]
        weight = 1 + (part.stop - part.start)
        label = f"score {self._method.name}"
        return Task(
            label,
            digest("score", _VERSION, key, place, identity),
            score_part,
            part,
            self._context.home,
            weight,
        )

    def _scorer(self) -> tuple[Any, str]:
        """What scores, and what its scores depend on."""
        method = self._method
        scorer: Scorer
        if method.name == "jsonl":
            if not Path(method.target).is_file():
                raise RecipeError(f"--by jsonl:{method.target}: there is no such file.")
            return ScoresById(os.path.abspath(method.target)), digest(
                "jsonl", file_sha256(Path(method.target))
            )
        if method.name == "dsir":
            return self._importance()
        if method.name == "linear":
            return self._linear()
        if method.name == "fasttext":
            if not Path(method.target).is_file():
                raise RecipeError(f"--by fasttext:{method.target}: there is no such file.")
            scorer = FastText(os.path.abspath(method.target), method.detail)
            scorer.check()
            return scorer, digest("fasttext", file_sha256(Path(method.target)), method.detail)
        if method.name == "classifier":
            scorer = Classifier(method.target, method.detail)
            scorer.check()
            return scorer, digest("classifier", _model_state(method.target), method.detail)
        name: Any = method.name
        if method.detail is not None:
            endpoint = EndpointLikelihood(method.target, method.detail, name)
            identity = digest("endpoint", method.target, method.detail, name)
            if not self._is_done(endpoint, identity):
                endpoint.check()
            return endpoint, identity
        scorer = Likelihood(method.target, name)
        scorer.check()
        return scorer, digest(name, _model_state(method.target))

    def _is_done(self, scorer: Any, identity: str) -> bool:
        """Whether every part is in the cache: then no server is asked."""
        from datamix.pipeline.store import Store

        store = Store(self._context.home)
        return all(
            store.find(self._task(replace(part, scorer=scorer), key, identity).key)
            for source in self._sources
            for part, key in parts_of(source, _MODEL_ROWS)
        )

    def _importance(self) -> tuple[NgramImportance, str]:
        counted = [
            [self._task(part, key, "ngrams") for source in of for part, key in parts_of(source, _TEXT_ROWS)]
            for of in (self._fitted, self._sources)
        ]
        receipts = self._context.run("count", [task for group in counted for task in group])
        paths = [r.folder / "counts.npy" for r in receipts]
        split = len(counted[0])
        spec = ImportanceSpec(tuple(paths[:split]), tuple(paths[split:]))
        key = digest(
            "importance", _VERSION, [[r.key for r in rs] for rs in (receipts[:split], receipts[split:])]
        )
        model = self._fit(Task("fit dsir", key, fit_importance_task, spec, self._context.home))
        return NgramImportance(model.folder / "model.npy"), key

    def _linear(self) -> tuple[LinearClassifier, str]:
        good, other = ([*parts_of(source, _TEXT_ROWS)] for source in self._fitted)
        spec = LinearSpec(tuple(p for p, _ in good), tuple(p for p, _ in other))
        places = [[[key, p.batch, p.start, p.stop] for p, key in of] for of in (good, other)]
        key = digest("linear", _VERSION, places)
        model = self._fit(Task("fit linear", key, fit_linear_task, spec, self._context.home))
        self.note = f"Held out of training, good and other records are told apart with an AUC of {model.counts['auc']:.3f}."
        return LinearClassifier(model.folder / "model.npy"), key

    def _fit(self, task: Task) -> Receipt:
        return self._context.run("fit", [task])[0]


def _model_state(name: str) -> Any:
    """A model by its files: their names, sizes and times in a folder, its id on the Hub."""
    if not os.path.isdir(name):
        return name
    paths = sorted(glob.glob(os.path.join(name, "*")))
    return [[os.path.basename(p), os.stat(p).st_size, os.stat(p).st_mtime_ns] for p in paths]
