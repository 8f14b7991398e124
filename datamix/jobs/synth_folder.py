"""The folder that ``datamix synth`` leaves: records, what was removed and rejected, pages, the manifest last; and the answers.

``OUT/answers`` is the ledger: it was paid for, and no run removes it. The other files are those of the manifest, replaced as those of a
set are: a file that somebody changed is set aside, and nothing else is touched. A first manifest without records is written before
anything is asked, so that an interrupted folder is known as what it is. One process at a time holds the folder, by a file with its pid
and a heartbeat: no lock of the file system is needed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from datamix.core.errors import RecipeError
from datamix.core.hashing import file_sha256
from datamix.pipeline.building import BUILDING, make_building, remove_building, staging
from datamix.pipeline.leases import Lease
from datamix.pipeline.out_folder import MANIFEST, both, leftover_files, listed_files, read_set, switch
from datamix.pipeline.write_shards import output

ANSWERS = "answers"
RECORDS = "records"
_SHARD_RECORDS = 100_000
_HOLDS = "holds"

REMOVED = pa.schema(
    {
        "id": pa.string(),
        "prompt_id": pa.string(),
        "reason": pa.string(),
        "kept": pa.string(),  # the id of the record that stays instead, where there is one
        "similarity": pa.float32(),
        "text": pa.string(),  # what the model wrote
    }
)


def read_synth(out: Path) -> dict[str, Any] | None:
    """The manifest of the synth folder OUT; None where it is none."""
    try:
        manifest = json.loads((out / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return None
    is_ours = isinstance(manifest, dict) and isinstance(manifest.get("outputs"), list)
    return manifest if is_ours and "synth" in manifest and "datamix_version" in manifest else None


def check_synth_out(out: Path) -> None:
    """Raise RecipeError where OUT is something else than a synth folder or nothing; nothing is changed."""
    if not out.exists():
        return
    if not out.is_dir():
        raise RecipeError(f"{out} is a file. Choose another folder with -o.")
    if read_synth(out) is not None:
        return
    if read_set(out) is not None:
        raise RecipeError(f"{out} holds a training set. Choose another folder with -o.")
    names = {path.name for path in out.iterdir()} - {ANSWERS, BUILDING}
    answers = out / ANSWERS
    if names or (
        answers.exists() and not any(answers.glob("[0-9]*.jsonl")) and not (answers / "leases").is_dir()
    ):
        raise RecipeError(
            f"{out} exists and was not written by `datamix synth`. Choose another folder with -o."
        )


@contextmanager
def hold_synth(out: Path) -> Iterator[None]:
    """Hold OUT for this process. Raises RecipeError with the pid of the one that holds it."""
    lease = Lease(out / ANSWERS, "synth")
    try:
        lease.name([])
        while True:  # of two that come at once, the one whose name sorts first goes on
            others = lease.others()
            holders = [path for path in others if _content(path) == _HOLDS]
            first = min((path.name for path in others), default="")
            if holders or (first and first < lease.id):
                holder = holders[0].name if holders else first
                raise RecipeError(
                    f"Another `datamix synth` (process {holder.split('-')[2]}) is writing {out}. Wait for it, stop it, or "
                    "choose another folder with -o."
                )
            lease.name([_HOLDS])
            if not any(path.name < lease.id or _content(path) == _HOLDS for path in lease.others()):
                break
            time.sleep(0.05)
        yield
    finally:
        lease.close()


def _content(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="ascii").strip()
    return ""


def begin(out: Path, manifest: dict[str, Any], warn: Callable[[str], None]) -> None:
    """Write a manifest without records into a new OUT, so that nothing in it is taken for a corpus."""
    if read_synth(out) is None:
        publish(out, manifest, [], [], [], {}, warn)


def publish(
    out: Path,
    manifest: dict[str, Any],
    records: Sequence[dict[str, Any]],
    removed: Sequence[dict[str, Any]],
    rejects: Sequence[dict[str, Any]],
    pages: dict[str, str],
    warn: Callable[[str], None],
) -> dict[str, Any]:
    """Write everything, the manifest last; return it with its outputs. What is there already and equal is left."""
    make_building(out)
    staged = staging(out)
    outputs = []
    for first in range(0, len(records), _SHARD_RECORDS):
        part = records[first : first + _SHARD_RECORDS]
        outputs.append(_write_lines(staged, f"{RECORDS}/{first // _SHARD_RECORDS:05d}.jsonl", part, RECORDS))
    if removed:
        path = staged / "removed" / "removed.parquet"
        path.parent.mkdir()
        pq.write_table(pa.Table.from_pylist(list(removed), REMOVED), path)
        outputs.append(output(staged, path, "parquet", "removed", len(removed)))
    for name in dict.fromkeys(reject["source"] for reject in rejects):
        part = [reject for reject in rejects if reject["source"] == name]
        outputs.append(_write_lines(staged, f"rejects/{name}.jsonl", part, "rejects"))
    for name, text in pages.items():
        (staged / name).write_text(text, encoding="utf-8")
        outputs.append(
            output(staged, staged / name, "card" if name.endswith(".md") else "report", "report", 0)
        )
    manifest = manifest | {"outputs": sorted(outputs, key=lambda entry: str(entry["path"]))}
    before = read_synth(out)
    if before != manifest or not _is_whole(out, manifest):
        owned = leftover_files(out) | ({MANIFEST: []} if before else {})
        replaced = both(owned, listed_files(before["outputs"] if before else []))
        switch(out, staged, replaced, (before, manifest), warn)
    remove_building(out)
    return manifest


def _is_whole(out: Path, manifest: dict[str, Any]) -> bool:
    return all(
        (out / e["path"]).is_file() and file_sha256(out / e["path"]) == e["sha256"]
        for e in manifest["outputs"]
    )


def _write_lines(staged: Path, name: str, rows: Sequence[dict[str, Any]], split: str) -> dict[str, Any]:
    path = staged / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return output(staged, path, "jsonl", split, len(rows))
