"""A part of a large source, spread over every file and over the length of each: some of its prepare tasks, done for real.

The tasks are those of a build, so what they leave is found by it. What they hold is scaled by rows where Parquet's footers
count them, else by bytes; a compressed file that cannot be cut is read from its beginning and scaled by what that unpacks to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.parquet as pq

from datamix.core.hashing import digest, salt
from datamix.formats import ShapeSpec
from datamix.pipeline import prepare, prepare_sources
from datamix.pipeline.estimate import record_sizes, spread
from datamix.pipeline.prepare_sources import BuildContext, SourceWork
from datamix.pipeline.scan import InputFile
from datamix.pipeline.shards import PreparedPart, SlicePlace, SourceShards
from datamix.read import expansion

_SAMPLE_BYTES = 32 << 20  # read of each source at least
_MIN_TASKS = 6
_WHOLE_BYTES = 64 << 20  # a file that cannot be cut is read whole up to here
_HEAD_RECORDS = 20_000  # of a larger one
_DEVIATIONS = 2.1


@dataclass(frozen=True)
class Scale:
    """How much more a source holds than its sample, and the margin of that as a part of it."""

    factor: float = 1.0
    records: float = 0.0  # of the number of records
    bytes: float = 0.0  # of the bytes of text

    def margin(self, of_sample: float, value: float, error: float) -> float:
        """The margin of a scaled value: of the sample's estimate, and of the sample as a part of the source."""
        return float(self.factor * np.hypot(of_sample, error * value))


def sample_parts(
    context: BuildContext, work: SourceWork, files: Sequence[InputFile]
) -> tuple[SourceShards, Scale]:
    """Prepared records of some tasks of a source, and how they are scaled. Raises DataError where none can be used."""
    kind = prepare_sources.record_kind(work, files)
    shape = ShapeSpec("", kind, (), work.system, work.keep_meta, work.kwargs, work.media)
    slices = Counter({number: len(file.slices()) for number, file in enumerate(files)})
    is_head = {n for n, file in enumerate(files) if slices[n] == 1 and file.num_bytes > _WHOLE_BYTES}
    limit = _HEAD_RECORDS if is_head else None
    parts = prepare.parts(files, shape, work.steps, limit, context.home, work.rules)
    sizes = np.array([sum(files[f].num_bytes / slices[f] for f in part.files) for part in parts])
    count = max(_MIN_TASKS, int(np.ceil(_SAMPLE_BYTES / sizes.mean())))
    at = spread(len(parts), count, salt(0, "sample", work.request.source))  # each as likely as any other
    chosen = [parts[i] for i in at]
    receipts = context.run("sample", [part.task for part in chosen])
    prepare_sources.check_source(replace(work, max_reject_share=1.0), files, receipts)
    placed = tuple(
        PreparedPart(r.folder, tuple(SlicePlace(0, 0, 0) for _ in p.files))
        for p, r in zip(chosen, receipts, strict=True)
    )
    texts = [record_sizes([part]) for part in placed]
    rows, num_bytes = (np.array([f(text) for text in texts], float) for f in (len, np.sum))
    read = sizes[at]
    if is_head:
        ratios = [expansion(files[p.files[0]].path, files[p.files[0]].compression) for p in chosen]
        read = np.array(
            [r.counts["raw_bytes"] / ratio or s for r, ratio, s in zip(receipts, ratios, read, strict=True)]
        )
    factor = max(1.0, float(sizes.sum() / read.sum()))
    if all(f.container == "parquet" and "://" not in f.path for f in files):
        total = sum(pq.read_metadata(f.path).num_rows for f in files)
        factor = max(1.0, total / max(1, sum(sum(r.counts["read"]) for r in receipts)))
    errors = [_relative_margin(values, read) if factor > 1 else 0.0 for values in (rows, num_bytes)]
    key = digest("sample", [r.key for r in receipts])
    return SourceShards(work.request.source, kind, key, placed), Scale(factor, *errors)


def _relative_margin(
    values: np.ndarray[tuple[int], np.dtype[np.float64]], sizes: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> float:
    """The margin of a ratio of a few tasks, as a part of it; wider for few than for many."""
    if len(values) < 2 or not values.sum():
        return 0.5
    residual = values - sizes * values.sum() / sizes.sum()
    error = float(np.sqrt((residual**2).sum() / (len(values) - 1) * len(values)) / values.sum())
    return _DEVIATIONS * (1 + 2.5 / (len(values) - 1)) * error
