"""What a build would take on a cluster: the graph of its tasks, simulated on so many machines and processors.

Each phase is its tasks, cut by the same constants as in a build, each with the time that one core needs; they are given to the
processors longest first, as they become free, and a phase begins when the one before has ended. So a file that cannot be cut, and
the steps that see every record on one processor, show in the hours. Rates were measured on one core of a shared server
(48 MB of conversations, 66,000 records, Qwen 2.5's tokenizer with `fastokens`), encoding on this machine where a sample was
encoded. Disks and network are counted in bytes, not in time. Cost: a second for a million tasks.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datamix.pipeline.plan_values import CACHE_BYTES, SIGNATURE_BYTES, SourcePlan
from datamix.pipeline.scan import InputFile

_SCAN_RATE, _PREPARE_RATE, _ENCODE_RATE, _SIGN_RATE = 417e6, 28e6, 8.1e6, 158e6  # bytes a second
_WRITE_RATE = 12e6  # bytes of the set a second
_SELECT_RATE, _PACK_RATE, _ORDER_RATE = 300e3, 2.5e6, 8e6  # records and rows a second
_TASK_SECONDS = 0.03  # beside its work: assumed, not measured
_SCAN_GROUP_BYTES, _SCAN_GROUP_FILES = 256 << 20, 64
_SLICE_BYTES, _GROUP_BYTES = 32 << 20, 16 << 20
_WINDOW_BYTES, _SHARD_TOKENS = 16 << 20, 1 << 23
_CUT = ("jsonl", "lines", "parquet", "arrow")  # containers that are read from the middle
_PROCESS_BYTES = 1 << 30  # of memory: the tokenizer, a batch, the packages
_SELECT_BYTES, _SIGNED_BYTES, _PACK_BYTES, _ORDER_BYTES = 60, 46, 42, 26  # of memory, a record or row


@dataclass(frozen=True)
class Cluster:
    """So many machines with so many processors each."""

    nodes: int
    cores: int


@dataclass(frozen=True)
class _Phase:
    name: str
    seconds: list[float]  # of each task
    num_bytes: float  # read and written on the shared disk
    memory: float  # of its largest task


def simulate(
    cluster: Cluster,
    sources: Sequence[SourcePlan],
    files_of: Sequence[Sequence[InputFile]],
    out_bytes: float,
    signs: bool,
) -> dict[str, Any]:
    """Tasks, time, bytes moved and memory a machine, phase by phase; ``signs``: records are compared with each other."""
    phases = _phases(sources, files_of, out_bytes, signs)
    lines: list[dict[str, Any]] = []
    for phase in phases:
        at_once = min(cluster.cores, len(phase.seconds))
        lines.append(
            {
                "phase": phase.name,
                "tasks": len(phase.seconds),
                "seconds": makespan(phase.seconds, cluster.nodes * cluster.cores),
                "bytes": phase.num_bytes,
                "memory": (at_once - 1) * _PROCESS_BYTES + max(phase.memory, _PROCESS_BYTES),
            }
        )
    work = sum(sum(phase.seconds) for phase in phases)
    total = sum(line["seconds"] for line in lines)
    return {
        "nodes": cluster.nodes,
        "cores": cluster.cores,
        "phases": lines,
        "tasks": sum(line["tasks"] for line in lines),
        "seconds": total,
        "bytes": sum(line["bytes"] for line in lines),
        "memory": max(line["memory"] for line in lines),
        "busy": work / max(1e-9, total * cluster.nodes * cluster.cores),
    }


def makespan(seconds: Sequence[float], num_slots: int) -> float:
    """When the last task ends, longest first on whichever slot is free: ``makespan([3, 2, 2], 2) == 4``."""
    if len(seconds) <= num_slots:
        return max(seconds, default=0.0)
    free = [0.0] * num_slots
    for task in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + task)
    return max(free)


def _phases(
    sources: Sequence[SourcePlan], files_of: Sequence[Sequence[InputFile]], out_bytes: float, signs: bool
) -> list[_Phase]:
    scans: list[float] = []
    prepares: list[float] = []
    encodes: list[float] = []
    signing: list[float] = []
    for source, files in zip(sources, files_of, strict=False):
        sizes = [file.num_bytes for file in files]
        groups = max(-(-len(sizes) // _SCAN_GROUP_FILES), -(-sum(sizes) // _SCAN_GROUP_BYTES), 1)
        scans += _equal(sum(sizes) / _SCAN_RATE, groups, max(sizes, default=0) / _SCAN_RATE)
        scale = source.prepared_bytes / max(
            1, sum(sizes)
        )  # of compressed files more is prepared than is stored
        small = sum(size for size in sizes if size <= _GROUP_BYTES)
        prepares += _equal(small * scale / _PREPARE_RATE, -(-small // (_GROUP_BYTES // 2)))
        for file in files:
            if file.num_bytes > _GROUP_BYTES:
                is_cut = file.compression is None and file.container in _CUT
                pieces = -(-file.num_bytes // _SLICE_BYTES) if is_cut else 1
                prepares += _equal(file.num_bytes * scale / _PREPARE_RATE, pieces)
        windows = max(1, round(source.prepared_bytes / _WINDOW_BYTES))
        encodes += _equal(source.prepared_bytes / (source.bytes_per_second or _ENCODE_RATE), windows)
        signing += _equal(source.prepared_bytes / _SIGN_RATE, windows) if signs else []
    read = sum(file.num_bytes for files in files_of for file in files)
    text = sum(s.prepared_bytes for s in sources)
    tokens = sum(s.cached_tokens or s.tokens for s in sources)
    records, rows = sum(s.records for s in sources), sum(s.rows for s in sources)
    keys = records * SIGNATURE_BYTES * signs
    corpus = _SELECT_BYTES + _SIGNED_BYTES * signs
    shards = max(1, round(sum(s.tokens for s in sources) / _SHARD_TOKENS))
    phases = [
        _Phase("scan", scans, read, 0),
        _Phase("prepare", prepares, read + text, 0),
        _Phase("encode", encodes, text + tokens * CACHE_BYTES, 0),
        _Phase("sign", signing, text + keys, 0),
        _Phase("select", [_TASK_SECONDS + records / _SELECT_RATE], keys + records * 40, records * corpus),
        _Phase("pack", [_TASK_SECONDS + s.records / _PACK_RATE for s in sources], records * 80,
               max(s.records for s in sources) * _PACK_BYTES),
        _Phase("order", [_TASK_SECONDS + rows / _ORDER_RATE], rows * 34, rows * _ORDER_BYTES),
        _Phase("write", _equal(out_bytes / _WRITE_RATE, shards), tokens * CACHE_BYTES + out_bytes, 0),
    ]  # fmt: skip
    return [phase for phase in phases if phase.seconds]


def _equal(seconds: float, count: int, longest: float = 0.0) -> list[float]:
    """``count`` tasks of equal length; one of them is ``longest``, where that is more."""
    each = seconds / max(1, count)
    if longest > each and count > 1:
        rest = max(0.0, seconds - longest) / (count - 1)
        return [_TASK_SECONDS + longest, *([_TASK_SECONDS + rest] * (count - 1))]
    return [_TASK_SECONDS + each] * count
