"""Scan, prepare, encode and sign every source: everything up to the first phase that sees more than one record.

All of it is cached by content: weights, stages, dedupe settings and validation do not touch it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from datamix.clean import Step
from datamix.core.contracts import Engine, Receipt, Task
from datamix.core.errors import DataError, MachineError, RecipeError, shown_name
from datamix.core.hashing import digest
from datamix.core.records import RecordKind
from datamix.dedup import DedupeSpec, LineSpec
from datamix.formats import RECORD_FORMATS, ShapeSpec, can_become
from datamix.pipeline import encode_pass as encode
from datamix.pipeline import line_pass as lines
from datamix.pipeline import prepare, scan
from datamix.pipeline.leases import Lease
from datamix.pipeline.progress import Screen, run_tasks
from datamix.pipeline.record_rules import KEEP_MISSING, NO_RULES, RecordRules
from datamix.pipeline.scan import InputFile, SourceRequest
from datamix.pipeline.score_rules import WantedScores, check_scores
from datamix.pipeline.shards import PreparedPart, SlicePlace, SourceShards, TokenShard
from datamix.pipeline.store import Store
from datamix.tokenize import EncodeSpec

_LARGE_BYTES = 16 << 20  # of input: less is encoded about as soon as workers have started


@dataclass(frozen=True)
class BuildContext:
    """Where work is done: the cache, the workers, the screen; and which files are of the set itself, never its input."""

    home: Path
    engine: Engine
    screen: Screen
    is_own: Callable[[str, Sequence[str]], bool] = lambda path, places: False
    lease: Lease | None = None  # of the cache, where the work is done there
    held: Lease | None = None  # of OUT, where machines share it

    def name(self, keys: Iterable[str]) -> None:
        """Say which results this run uses, so that pruning leaves them."""
        if self.lease is not None:
            self.lease.name(keys)

    def check_held(self) -> None:
        """Raise MachineError where another build took OUT over, because this one had no heartbeat for a minute."""
        if self.held is not None and self.held.is_lost:
            raise MachineError(
                "This build was stopped for a minute or longer, and another one has taken its place. Nothing was published here: "
                "wait for the other one."
            )

    def close(self) -> None:
        """Stop the workers, and withdraw from the cache."""
        self.engine.close()
        if self.lease is not None:
            self.lease.close()

    def run(self, title: str, tasks: Sequence[Task]) -> list[Receipt]:
        self.check_held()
        """The receipts of some tasks, in their order; a task that occurs twice (the buckets of a source share theirs) is done once."""
        unique = {task.key: task for task in tasks}
        self.name(unique)
        receipts = dict(
            zip(unique, run_tasks(self.engine, self.screen, title, list(unique.values())), strict=True)
        )
        return [receipts[task.key] for task in tasks]


@dataclass(frozen=True)
class SourceWork:
    """What the recipe says of one source, as the phases need it."""

    request: SourceRequest
    kind: str  # of the recipe; "native" for references, which stay what they are
    system: str | None = None
    keep_meta: tuple[str, ...] = ()
    kwargs: str | None = None
    media: Literal["reject", "keep"] = "reject"
    steps: tuple[Step, ...] = ()
    max_reject_share: float = 1.0
    encode: EncodeSpec | None = None
    max_length: int | None = None
    overlong: str = "drop"
    dedupe: DedupeSpec | None = None
    lines: LineSpec | None = None  # repeated lines to cut, of all sources together
    limit: int | None = None
    rules: RecordRules = NO_RULES
    scores: WantedScores | None = None


@dataclass(frozen=True)
class PreparedSource:
    """One source, prepared: its files, what became of its records so far, and its shards."""

    name: str
    files: tuple[InputFile, ...]
    kind: RecordKind
    prepared: tuple[Receipt, ...]
    encoded: tuple[Receipt, ...]
    fitted: tuple[Receipt, ...]
    shards: SourceShards
    file_records: tuple[int, ...]  # records read from each file

    def count(self, name: str) -> Counter[str]:
        """A tally of the prepare tasks: ``rejected_by``, ``cleaned_by`` or ``mended_by``."""
        total: Counter[str] = Counter()
        for receipt in self.prepared:
            total.update(receipt.counts[name])
        return total

    @property
    def num_prepared(self) -> int:
        return sum(rows for receipt in self.prepared for rows, _ in receipt.counts["batches"])


def scan_sources(context: BuildContext, works: Sequence[SourceWork]) -> list[tuple[InputFile, ...]]:
    """Scan every source under one bar."""
    tasks = [scan.tasks(work.request, context.home, context.is_own) for work in works]
    receipts = _grouped(context, "scan", tasks)
    return [
        tuple(scan.files(work.request, list(zip(t, r, strict=True))))
        for work, t, r in zip(works, tasks, receipts, strict=True)
    ]


def prepare_sources(
    context: BuildContext,
    works: Sequence[SourceWork],
    files_of: Sequence[tuple[InputFile, ...]] | None = None,
) -> list[PreparedSource]:
    """Prepare, encode and sign every source, phase by phase; ``files_of`` each where they are scanned already."""
    files_of = scan_sources(context, works) if files_of is None else files_of
    for work, files in zip(works, files_of, strict=True):
        if work.scores is not None:
            check_scores(work.scores, work.request.source, files)
    parts = [_parts(work, files, context.home) for work, files in zip(works, files_of, strict=True)]
    prepared = _grouped(context, "prepare", [[p.task for p in group] for group in parts])
    for work, files, receipts in zip(works, files_of, prepared, strict=True):
        check_source(work, files, receipts)
    kinds = [record_kind(work, files) for work, files in zip(works, files_of, strict=True)]
    prepared = _without_lines(context, works, kinds, prepared)
    windows = [prepare.windows(receipts) for receipts in prepared]
    home, names = context.home, [work.request.source for work in works]
    rows = list(zip(names, works, kinds, windows, strict=True))
    encodings = [
        encode.encode_tasks(name, w, kind, work.encode, home) if work.encode else []
        for name, work, kind, w in rows
    ]
    encoded = _grouped(context, "encode", encodings)
    fittings = [
        encode.fit_tasks(name, list(zip(t, r, strict=True)), work.max_length, work.overlong, home)
        for name, work, t, r in zip(names, works, encodings, encoded, strict=True)
    ]
    fitted = _grouped(context, "truncate", fittings)
    signings = [
        encode.sign_tasks(name, w, kind, work.dedupe, home) if work.dedupe else []
        for name, work, kind, w in rows
    ]
    signed = _grouped(context, "sign", signings)
    result: list[PreparedSource] = []
    first_file = 0  # numbers the manifest's inputs
    for n, (name, kind, files) in enumerate(zip(names, kinds, files_of, strict=True)):
        scan.unchanged(files)
        placed, records = _placed(parts[n], prepared[n], len(files), first_file)
        fits = {
            t.spec.encoded: r.folder / "fitted.arrow" for t, r in zip(fittings[n], fitted[n], strict=True)
        }
        shards: list[TokenShard] = []
        for receipt in encoded[n]:
            tokens = receipt.folder / "tokens.arrow"
            shards.append(TokenShard(tokens, receipt.counts["rows"], fits.get(tokens)))
        key = digest(name, kind, [r.key for r in (*prepared[n], *encoded[n], *fitted[n], *signed[n])])
        signatures = tuple(r.folder / "signatures.arrow" for r in signed[n])
        source = SourceShards(name, kind, key, placed, tuple(shards), signatures)
        done = tuple(prepared[n]), tuple(encoded[n]), tuple(fitted[n])
        result.append(PreparedSource(name, files, kind, *done, source, records))
        first_file += len(files)
    return result


def _placed(
    parts: Sequence[prepare.PreparedSlices], prepared: Sequence[Receipt], num_files: int, first_file: int
) -> tuple[tuple[PreparedPart, ...], tuple[int, ...]]:
    """The place of each slice of a source, and the records read from each of its files."""
    records, lines = [0] * num_files, [0] * num_files
    placed: list[PreparedPart] = []
    for part, receipt in zip(parts, prepared, strict=True):
        places: list[SlicePlace] = []
        counts = zip(part.files, receipt.counts["read"], receipt.counts["lines"], strict=True)
        for file, num_read, num_lines in counts:
            places.append(SlicePlace(first_file + file, records[file], lines[file]))
            records[file] += num_read
            lines[file] += num_lines
        placed.append(PreparedPart(receipt.folder, tuple(places)))
    return tuple(placed), tuple(records)


def _without_lines(
    context: BuildContext,
    works: Sequence[SourceWork],
    kinds: Sequence[RecordKind],
    prepared: list[list[Receipt]],
) -> list[list[Receipt]]:
    """The prepared files without lines that too many documents hold, where the recipe asks for it."""
    spec = next((work.lines for work in works if work.lines is not None), None)
    texts = [number for number, kind in enumerate(kinds) if kind == "text"]
    if spec is None or not texts:
        return prepared
    windows = [w for number in texts for w in prepare.windows(prepared[number])]
    counted = context.run("lines", lines.count_tasks(windows, spec, context.home))
    common = context.run("lines", [lines.common_task(counted, spec, context.home)])[0]
    tasks = [lines.cut_tasks(prepared[n], windows, common, spec, context.home) for n in texts]
    cut = dict(zip(texts, _grouped(context, "lines", tasks), strict=True))
    return [cut.get(number, receipts) for number, receipts in enumerate(prepared)]


def _parts(work: SourceWork, files: Sequence[InputFile], home: Path) -> list[prepare.PreparedSlices]:
    shape = ShapeSpec("", record_kind(work, files), (), work.system, work.keep_meta, work.kwargs, work.media)
    return prepare.parts(files, shape, work.steps, work.limit, home, work.rules)


def preload_tokenizer(
    context: BuildContext, works: Sequence[SourceWork], files_of: Sequence[tuple[InputFile, ...]]
) -> None:
    """Begin to load the tokenizer for all workers, where much is to be read for the first time, and so encoded."""
    specs = [work.encode for work in works if work.encode is not None]
    num_bytes = sum(file.num_bytes for files in files_of for file in files)
    if specs and num_bytes >= _LARGE_BYTES:
        groups = [_parts(work, files, context.home) for work, files in zip(works, files_of, strict=True)]
        if not all(Store(context.home).find(p.task.key) for group in groups for p in group):
            context.engine.warm(encode.warm, specs[0])


def _grouped(context: BuildContext, title: str, groups: Sequence[Sequence[Task]]) -> list[list[Receipt]]:
    receipts = iter(context.run(title, [t for group in groups for t in group]))
    return [[next(receipts) for _ in group] for group in groups]


def record_kind(work: SourceWork, files: Sequence[InputFile]) -> RecordKind:
    """What the records of a source become under this recipe. Raises RecipeError where they cannot."""
    source = work.request.source
    able = [(f, RECORD_FORMATS[f.format].kinds) for f in files if f.format and f.format in RECORD_FORMATS]
    if not able:
        return "text" if work.kind in ("pretrain", "native") else work.kind  # type: ignore[return-value]
    if work.kind == "native":
        return able[0][1][0]
    if work.kind == "pretrain":
        kinds: set[RecordKind] = {"text" if "text" in native else "sft" for _, native in able}
        if len(kinds) > 1:
            raise RecipeError(
                f"sources.{source}: its files hold both plain text and conversations. Make two sources."
            )
        return kinds.pop()
    target: RecordKind = work.kind  # type: ignore[assignment]
    for file, native in able:
        if not any(kind == target or can_become(kind, target) for kind in native):
            other = "pretrain" if native[0] == "text" else native[0]
            raise RecipeError(
                f"sources.{source}: {shown_name(file.label)} holds {native[0]} records (format {file.format}), which a recipe of kind "
                f"{work.kind} cannot use. Take that file out, use `kind: {other}`, or name its fields with `columns` if it was "
                "misread."
            )
    return target


def check_source(work: SourceWork, files: Sequence[InputFile], receipts: Sequence[Receipt]) -> None:
    """Stop where a source is empty or too much of it is broken. Raises DataError with the first broken record."""
    source = work.request.source
    read = sum(sum(r.counts["read"]) for r in receipts)
    why: Counter[str] = Counter()
    for receipt in receipts:
        why.update(receipt.counts["rejected_by"])
    rejected = why.total()
    cleaned: Counter[str] = Counter()
    for receipt in receipts:
        cleaned.update(receipt.counts["cleaned_by"])
    missing, is_left = cleaned[KEEP_MISSING], any(receipt.counts["batches"] for receipt in receipts)
    if missing and missing == cleaned.total() and not is_left:
        fields = ", ".join(band.field for band in work.rules.keep)
        raise RecipeError(
            f"sources.{source}.keep: none of its {missing:,} records has a number in the field {fields}. Name a field of "
            "the files, by its path if it is inside another (`field: extra_info.pass_rate`)."
        )
    if not read:
        raise DataError(
            f"Source {source} is empty: {len(files)} file{'s' * (len(files) != 1)} "
            f"({', '.join(shown_name(f.label) for f in files[:3])}) hold no record. Remove the source, or fix its path."
        )
    if rejected / read > work.max_reject_share or rejected == read:
        broken = next(r for r in receipts if r.counts["rejected_by"])
        first = next(prepare.read_batches(str(broken.folder / "rejects.arrow"))).slice(0, 1).to_pylist()[0]
        line = f"line {first['line']}" if first["line"] else f"record {first['record']}"
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in why.most_common(4))
        raise DataError(
            f"Source {source}: {rejected:,} of {read:,} records ({rejected / read:.1%}) could not be used: {reasons}. "
            f"The first: {line}: {first['detail']}. That is more than max_reject_share ({work.max_reject_share:.0%}). See "
            f"`datamix check {shown_name(files[0].label)}`; then fix the file, name its `format` or `columns`, or raise max_reject_share."
        )
