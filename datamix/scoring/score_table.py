"""``scores.parquet``: a score a record, and which bytes it is of.

Columns ``source`` ('' where a plain file was scored), ``file`` (its name), ``record`` (its ordinal in the file), ``name`` and ``score``; what
could not be scored has no line. The metadata ``datamix.scores`` lists the files with their sha256. Records are found again by the sha256 of
their file, wherever it is now; scores of other bytes are never used. Costs 8 bytes a record while it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datamix.core.errors import DataError, RecipeError

METADATA = b"datamix.scores"
_SCHEMA = pa.schema(
    [("source", pa.string()), ("file", pa.string()), ("record", pa.int64()), ("name", pa.string()), ("score", pa.float64())]
)  # fmt: skip


@dataclass(frozen=True)
class ScoredFile:
    """The scores of one input file."""

    source: str
    file: str
    sha256: str
    record: NDArray[np.int64] = field(compare=False)  # [num_scored] rising
    score: NDArray[np.float64] = field(compare=False)  # [num_scored]


def write_scores(path: Path, name: str, by: str, files: Sequence[ScoredFile]) -> None:
    """Write the file of one score; the same scores give the same bytes."""
    inputs = [{"source": f.source, "file": f.file, "sha256": f.sha256} for f in files]
    facts = json.dumps({"name": name, "by": by, "inputs": inputs}, ensure_ascii=False, sort_keys=True)
    schema = _SCHEMA.with_metadata({METADATA: facts.encode()})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for scored in files:
            count = len(scored.record)
            columns = [
                [scored.source] * count,
                [scored.file] * count,
                scored.record,
                [name] * count,
                scored.score,
            ]
            arrays = [pa.array(c, t.type) for c, t in zip(columns, _SCHEMA, strict=True)]
            if count:
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


class ScoreTable:
    """Scores of one or several files, by name and by the bytes they are of."""

    def __init__(self, scores: Mapping[tuple[str, str], Sequence[ScoredFile]]) -> None:
        self._scores = scores  # (name, sha256) -> of each source that was scored

    @property
    def names(self) -> list[str]:
        """The scores that there are."""
        return sorted({name for name, _ in self._scores})

    def files(self, name: str) -> list[ScoredFile]:
        """Every scored file."""
        return [f for (of, _), files in self._scores.items() if of == name for f in files]

    def of(self, name: str, source: str, sha256: str) -> ScoredFile | None:
        """The scores of a file in a source: scored as part of it, else as a plain file or of another source."""
        files = self._scores.get((name, sha256), ())
        best = sorted(files, key=lambda f: (f.source != source, f.source != "", f.source))
        return best[0] if best else None


def read_scores(paths: Sequence[Path]) -> ScoreTable:
    """Read files of scores. Raises RecipeError for one that is none, or two scores of one name for the same record."""
    scores: dict[tuple[str, str], list[ScoredFile]] = {}
    for path in paths:
        table, facts = _opened(path)
        for entry in facts["inputs"]:
            key = (facts["name"], entry["sha256"])
            if any(f.source == entry["source"] for f in scores.get(key, [])):
                raise RecipeError(
                    f"scores: {path} and another file both hold scores {facts['name']!r} of {entry['file']}. Name one of the two, or "
                    "score again with another --name."
                )
            rows = table.filter(
                pc.and_(pc.equal(table["source"], entry["source"]), pc.equal(table["file"], entry["file"]))
            ).sort_by("record")
            record, score = rows["record"].to_numpy(), rows["score"].to_numpy()
            scores.setdefault(key, []).append(
                ScoredFile(entry["source"], entry["file"], entry["sha256"], record, score)
            )
    return ScoreTable(scores)


def is_scores(path: Path) -> bool:
    """Whether a file is one that ``write_scores`` wrote."""
    try:
        return METADATA in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowInvalid):
        return False


def _opened(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    advice = "`datamix score` writes such a file."
    try:
        table = pq.read_table(path)
        facts = json.loads((table.schema.metadata or {})[METADATA])
        entries = [{name: str(e[name]) for name in ("source", "file", "sha256")} for e in facts["inputs"]]
        return table.select(_SCHEMA.names).cast(_SCHEMA), {"name": str(facts["name"]), "inputs": entries}
    except FileNotFoundError:
        raise RecipeError(f"scores: {path} is not there. {advice}") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise RecipeError(f"scores: {path} cannot be read as Parquet ({error}). {advice}") from None
    except (KeyError, TypeError, ValueError, pa.ArrowException):
        raise RecipeError(
            f"scores: {path} does not say of which files its scores are. {advice} Scores in a JSONL of ids become one with `datamix score "
            "FILE --by jsonl:SCORES.jsonl`."
        ) from None


def read_ids(path: Path) -> dict[str, float]:
    """``{"id": ..., "score": ...}`` lines as scores by id. Raises DataError for a line that is none, or an id that occurs twice."""
    scores: dict[str, float] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"--by jsonl:{path} cannot be read: {error}.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            key, score = value["id"], value["score"]
        except (ValueError, KeyError, TypeError):
            key, score = None, None
        if key is None or isinstance(score, bool) or not isinstance(score, int | float) or score != score:
            raise DataError(
                f'{path}, line {number}: is no score of an id. A line looks like {{"id": "a-17", "score": 3.5}}.'
            )
        if scores.setdefault(str(key), float(score)) != float(score):
            raise DataError(
                f"{path}, line {number}: the id {key!r} has another score above. Keep one of them."
            )
    return scores
