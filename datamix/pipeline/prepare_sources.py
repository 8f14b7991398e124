"""Survey, prepare, encode and sign every source: everything up to the first phase that sees more than one record.

All of it is cached by content: weights, stages, dedupe settings and validation do not touch it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamix.clean import Step
from datamix.core.contracts import Engine, Receipt, Task
from datamix.core.errors import DataError, RecipeError
from datamix.core.hashing import digest
from datamix.core.records import RecordKind
from datamix.dedup import DedupeSpec, LineSpec
from datamix.formats import RECORD_FORMATS, can_become
from datamix.pipeline import encode_pass as encode
from datamix.pipeline import line_pass as lines
from datamix.pipeline import prepare, scan, sign
from datamix.pipeline.progress import Screen, run_tasks
from datamix.pipeline.scan import InputFile, SourceRequest
from datamix.pipeline.shards import PreparedPart, SlicePlace, SourceShards
from datamix.pipeline.store import Store
from datamix.pipeline.token_store import TokenShard
from datamix.tokenize import EncodeSpec

_LARGE_BYTES = 16 << 20  # of input: less is encoded about as soon as workers have started


@dataclass(frozen=True)
class BuildContext:
    """Where work is done: the cache, the workers, the screen; and which files are of the set itself, never its input."""

    home: Path
    engine: Engine
    screen: Screen
    is_own: Callable[[str, Sequence[str]], bool] = lambda path, places: False

    def run(self, title: str, tasks: Sequence[Task]) -> list[Receipt]:
        return run_tasks(self.engine, self.screen, title, tasks)


@dataclass(frozen=True)
class SourceWork:
    """What the recipe says of one source, as the phases need it."""

    request: SourceRequest
    kind: str  # of the recipe; "native" for references, which stay what they are
    system: str | None = None
    keep_meta: tuple[str, ...] = ()
    kwargs: str | None = None
    steps: tuple[Step, ...] = ()
    max_reject_share: float = 1.0
    encode: EncodeSpec | None = None
    max_length: int | None = None
    overlong: str = "drop"
    dedupe: DedupeSpec | None = None
    lines: LineSpec | None = None  # repeated lines to cut, of all sources together
    limit: int | None = None


@dataclass(frozen=True)
class PreparedSource:
    """One source, prepared: its files, what became of its records so far, and its shards."""

    name: str
    found: tuple[InputFile, ...]
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
    receipts = iter(context.run("scan", [t for group in tasks for t in group]))
    return [
        tuple(scan.files(work.request, [(t, next(receipts)) for t in group]))
        for work, group in zip(works, tasks, strict=True)
    ]


def prepare_sources(
    context: BuildContext, works: Sequence[SourceWork], found: Sequence[tuple[InputFile, ...]] | None = None
) -> list[PreparedSource]:
    """Prepare, encode and sign every source, phase by phase; ``found`` are their files where they were looked for."""
    found = scan_sources(context, works) if found is None else found
    first_file = 0  # numbers the manifest's inputs
    kinds = [record_kind(work, files) for work, files in zip(works, found, strict=True)]
    parts = [_parts(work, files, context.home) for work, files in zip(works, found, strict=True)]
    prepared = _grouped(context, "prepare", [[p.task for p in group] for group in parts])
    for work, files, receipts in zip(works, found, prepared, strict=True):
        check_source(work, files, receipts)
    prepared = _without_lines(context, works, kinds, prepared)
    windows = [prepare.windows(receipts) for receipts in prepared]
    rows = list(zip(works, kinds, windows, strict=True))
    encodings = [
        encode.encode_tasks(work.request.source, w, kind, work.encode, context.home) if work.encode else []
        for work, kind, w in rows
    ]
    encoded = _grouped(context, "encode", encodings)
    fittings = [
        encode.fit_tasks(
            work.request.source, list(zip(t, r, strict=True)), work.max_length, work.overlong, context.home
        )
        for work, t, r in zip(works, encodings, encoded, strict=True)
    ]
    fitted = _grouped(context, "truncate", fittings)
    signings = [
        sign.tasks(work.request.source, w, kind, work.dedupe, context.home) if work.dedupe else []
        for work, kind, w in rows
    ]
    signed = _grouped(context, "sign", signings)
    result: list[PreparedSource] = []
    for number, work in enumerate(works):
        scan.unchanged(found[number])
        fits = {t.spec.encoded: r for t, r in zip(fittings[number], fitted[number], strict=True)}
        done = _Work(
            found[number],
            kinds[number],
            parts[number],
            prepared[number],
            encoded[number],
            fits,
            signed[number],
        )
        result.append(_ready(work.request.source, done, first_file))
        first_file += len(found[number])
    return result


def _without_lines(
    context: BuildContext,
    works: Sequence[SourceWork],
    kinds: Sequence[RecordKind],
    prepared: list[list[Receipt]],
) -> list[list[Receipt]]:
    """The prepared files without lines that stand in too many documents, where the recipe asks for it."""
    spec = next((work.lines for work in works if work.lines is not None), None)
    texts = [number for number, kind in enumerate(kinds) if kind == "text"]
    if spec is None or not texts:
        return prepared
    windows = [w for number in texts for w in prepare.windows(prepared[number])]
    counted = context.run("lines", lines.count_tasks(windows, spec, context.home))
    found = context.run("lines", [lines.common_task(counted, spec, context.home)])[0]
    cut = _grouped(
        context, "lines", [lines.cut_tasks(prepared[n], windows, found, spec, context.home) for n in texts]
    )
    made = dict(zip(texts, cut, strict=True))
    return [made.get(number, receipts) for number, receipts in enumerate(prepared)]


def _parts(work: SourceWork, files: Sequence[InputFile], home: Path) -> list[prepare.PreparedSlices]:
    shape = prepare.ShapeOf(record_kind(work, files), work.system, work.keep_meta, work.kwargs)
    return prepare.parts(files, shape, work.steps, work.limit, home)


def preload_tokenizer(
    context: BuildContext, works: Sequence[SourceWork], found: Sequence[tuple[InputFile, ...]]
) -> None:
    """Begin to load the tokenizer for all workers, where much is to be read for the first time, and so encoded."""
    specs = [work.encode for work in works if work.encode is not None]
    num_bytes = sum(file.num_bytes for files in found for file in files)
    if not specs or num_bytes < _LARGE_BYTES:
        return
    reading = [
        p.task for work, files in zip(works, found, strict=True) for p in _parts(work, files, context.home)
    ]
    if not all(Store(task.home).find(task.key) for task in reading):
        context.engine.warm(encode.warm, specs[0])


def _grouped(context: BuildContext, title: str, groups: Sequence[Sequence[Task]]) -> list[list[Receipt]]:
    receipts = iter(context.run(title, [t for group in groups for t in group]))
    return [[next(receipts) for _ in group] for group in groups]


@dataclass(frozen=True)
class _Work:
    """What the phases made of one source."""

    found: tuple[InputFile, ...]
    kind: RecordKind
    parts: Sequence[prepare.PreparedSlices]
    prepared: Sequence[Receipt]
    encoded: Sequence[Receipt]
    fits: dict[Path, Receipt]  # by the tokens that they fit
    signed: Sequence[Receipt]


def _ready(name: str, done: _Work, first_file: int) -> PreparedSource:
    found, prepared, encoded, fits = done.found, done.prepared, done.encoded, done.fits
    records, lines = [0] * len(found), [0] * len(found)
    placed: list[PreparedPart] = []
    for part, receipt in zip(done.parts, prepared, strict=True):
        places: list[SlicePlace] = []
        for file, num_read, num_lines in zip(
            part.files, receipt.counts["read"], receipt.counts["lines"], strict=True
        ):
            places.append(SlicePlace(first_file + file, records[file], lines[file]))
            records[file] += num_read
            lines[file] += num_lines
        placed.append(PreparedPart(receipt.folder, tuple(places)))
    shards: list[TokenShard] = []
    for receipt in encoded:
        tokens = receipt.folder / "tokens.arrow"
        fit = fits.get(tokens)
        shards.append(
            TokenShard(tokens, receipt.counts["rows"], fit.folder / "fitted.arrow" if fit else None)
        )
    every = [*prepared, *encoded, *fits.values(), *done.signed]
    key = digest(name, done.kind, [r.key for r in every])
    source = SourceShards(
        name,
        done.kind,
        key,
        tuple(placed),
        tuple(shards),
        tuple(r.folder / "signatures.arrow" for r in done.signed),
    )
    return PreparedSource(
        name,
        found,
        done.kind,
        tuple(prepared),
        tuple(encoded),
        tuple(fits.values()),
        source,
        tuple(records),
    )


def record_kind(work: SourceWork, found: Sequence[InputFile]) -> RecordKind:
    """What the records of a source become under this recipe. Raises RecipeError where they cannot."""
    source = work.request.source
    able = [
        (f, RECORD_FORMATS[f.format].kinds)
        for f in found
        if f.format is not None and f.format in RECORD_FORMATS
    ]
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
                f"sources.{source}: {file.label} holds {native[0]} records (format {file.format}), which a recipe of kind "
                f"{work.kind} cannot use. Take that file out, use `kind: {other}`, or name its fields with `columns` if it was "
                "misread."
            )
    return target


def check_source(work: SourceWork, found: Sequence[InputFile], receipts: Sequence[Receipt]) -> None:
    """Stop where a source is empty or too much of it is broken. Raises DataError with the first broken record."""
    source = work.request.source
    read = sum(sum(r.counts["read"]) for r in receipts)
    rejected = sum(sum(r.counts["rejected_by"].values()) for r in receipts)
    if not read:
        raise DataError(
            f"Source {source} is empty: {len(found)} file{'s' * (len(found) != 1)} "
            f"({', '.join(f.label for f in found[:3])}) hold no record. Remove the source, or fix its path."
        )
    if rejected / read > work.max_reject_share or rejected == read:
        why: Counter[str] = Counter()
        for receipt in receipts:
            why.update(receipt.counts["rejected_by"])
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in why.most_common(4))
        raise DataError(
            f"Source {source}: {rejected:,} of {read:,} records ({rejected / read:.1%}) could not be used: {reasons}. "
            f"{_example(receipts)} That is more than max_reject_share ({work.max_reject_share:.0%}). Look at them with "
            f"`datamix check {found[0].label}`; then fix the file, name its `format` or `columns`, or raise max_reject_share."
        )


def _example(receipts: Sequence[Receipt]) -> str:
    for receipt in receipts:
        for batch in prepare.read_batches(str(receipt.folder / "rejects.arrow")):
            row: dict[str, Any] = batch.slice(0, 1).to_pylist()[0]
            line = f"line {row['line']}" if row["line"] else f"record {row['record']}"
            return f"The first: {line}: {row['detail']}."
    return ""


def num_rejects(part: Receipt) -> int:
    """Records of one prepare task that went to rejects."""
    return sum(part.counts["rejected_by"].values())
