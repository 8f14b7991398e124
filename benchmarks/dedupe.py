"""Deduplication against other engines: whole processes on the same texts, quality against an exact join.

    python benchmarks/dedupe.py                      speed at 25k and 100k documents, quality at 25k, English and Chinese
    python benchmarks/dedupe.py --documents 25000    other sizes
    python benchmarks/dedupe.py --records 10000000   memory and recall out of core, on generated text

The corpus is what ``../shared/data/pretrain`` holds, cut at headings, plus planted edits: variants of documents with 0.5 to 20 % of
the words changed, truncations, changes of case and punctuation, and exact copies, until the size is reached. The truth is
an exact all-pairs join of the sets of word 5-grams, by another road than the engine's (regular expressions, Python sets,
prefix filter in polars). Peers that are not installed are named as such. Each engine runs in a process of its own, reads
Parquet and writes the mask of what it keeps; wall time and peak memory are of that process and its children.

Peers live in an environment of their own, because they ask for older packages, and are named with --peers:

    python -m venv peers && peers/bin/pip install daft==0.7.26 rensa==0.5.0 datasketch==2.0.0 'xxhash<4' text-dedup==0.4.0
    python benchmarks/dedupe.py --peers peers/bin/python
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data" / "pretrain"
HAN = "\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff"
WORD = re.compile(rf"[{HAN}]|[^\W{HAN}]+")
BANDS, ROWS = 14, 8


# --- corpus ---------------------------------------------------------------------------------------------------------


def sections(language: str) -> list[str]:
    """Sections of the documents of one language, cut at headings, joined up to about 2.6 kB."""
    found = []
    for path in sorted(SHARED.glob(f"{language}_*.jsonl")):
        for line in path.open(encoding="utf-8"):
            held = ""
            for part in re.split(r"(?m)^(?=#|={3,}$|-{3,}$)", json.loads(line)["text"]):
                held += part
                if len(held.encode()) > 2000:
                    found.append(held)
                    held = ""
            if len(held) > 80:
                found.append(held)
    return found


def corpus(language: str, num_documents: int) -> list[str]:
    """Sections and planted variants of them, shuffled, the same in every run."""
    rng = random.Random(20260101)
    base = sections(language)
    rng.shuffle(base)
    base = base[: int(num_documents * 0.68)]
    documents = list(base)
    while len(documents) < num_documents:
        text = rng.choice(base)
        kind = rng.random()
        if kind < 0.2:
            documents.append(text)
        elif kind < 0.3:
            documents.append(text[: int(len(text) * rng.uniform(0.7, 0.97))])
        elif kind < 0.4:
            documents.append(text.upper().replace(",", ";"))
        else:
            documents.append(edited(text, rng.uniform(0.005, 0.2) ** 2 * 5, rng))
    rng.shuffle(documents)
    return documents


def edited(text: str, share: float, rng: random.Random) -> str:
    """A text with a share of its words replaced."""
    parts = re.split(rf"([{HAN}]|[^\W{HAN}]+)", text)
    for i in range(1, len(parts), 2):
        if rng.random() < share:
            parts[i] = rng.choice(("改", "词", "字")) if parts[i] >= "\u3040" else f"edit{rng.randrange(999)}"
    return "".join(parts)


# --- truth ----------------------------------------------------------------------------------------------------------


def shingles(text: str) -> set[tuple[str, ...]]:
    words = [word.lower() for word in WORD.findall(text)]
    if 0 < len(words) < 5:
        return {tuple(words)}
    return set(zip(*(words[i:] for i in range(5)), strict=False))


def exact_pairs(texts: list[str], threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of documents at least this similar, and their similarity, by a prefix-filtered join."""
    import polars as pl

    numbers: dict[tuple[str, ...], int] = {}
    sets = [
        np.fromiter((numbers.setdefault(s, len(numbers)) for s in shingles(text)), np.int64) for text in texts
    ]
    counts = np.bincount(np.concatenate(sets), minlength=len(numbers))
    rank = np.empty(len(numbers), np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(numbers))
    sets = [np.sort(rank[s]) for s in sets]
    prefixes = [s[: len(s) - math.ceil(threshold * len(s)) + 1] for s in sets]
    rows = pl.DataFrame(
        {
            "document": np.repeat(np.arange(len(sets)), [len(p) for p in prefixes]),
            "gram": np.concatenate(prefixes),
        }
    )
    rows = rows.filter(pl.len().over("gram") > 1)
    met = rows.join(rows, on="gram").filter(pl.col("document") < pl.col("document_right"))
    candidates = (
        met.select("document", "document_right").unique().sort("document", "document_right").to_numpy()
    )
    kept, similar = [], []
    for a, b in candidates.tolist():
        small, large = sorted((len(sets[a]), len(sets[b])))
        if small < threshold * large:
            continue
        common = len(np.intersect1d(sets[a], sets[b], assume_unique=True))
        if common >= threshold * (small + large - common):
            kept.append((a, b))
            similar.append(common / (small + large - common))
    return np.array(kept, np.int64).reshape(-1, 2), np.array(similar)


def quality(mask: np.ndarray, pairs: np.ndarray) -> tuple[float, float, int]:
    """Recall of pairs (not both kept), precision (removed documents that have a true neighbour), clusters without a keeper."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    recall = 1 - (mask[pairs[:, 0]] & mask[pairs[:, 1]]).mean()
    has_neighbour = np.zeros(len(mask), bool)
    has_neighbour[pairs.reshape(-1)] = True
    precision = has_neighbour[~mask].mean() if (~mask).any() else 1.0
    edges = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(mask), len(mask)))
    _, labels = connected_components(edges, directed=False)
    lost = len(np.unique(labels)) - len(np.unique(labels[mask]))
    return float(recall), float(precision), lost


# --- engines: each is called in a process of its own with (texts as an Arrow column, processes) and returns what is kept


def datamix_with(verify: bool, bands: int | None, rows: int | None) -> Callable[[pa.Table, int], np.ndarray]:
    def run(table: pa.Table, processes: int) -> np.ndarray:
        from datamix.dedup import DedupeSpec, NearSpec, dedupe

        spec = DedupeSpec(near=NearSpec(bands=bands, rows=rows, verify=verify))
        return np.array(dedupe(table, spec=spec, threads=processes).stays.to_pylist())

    return run


def _datasketch_values(texts: list[str]) -> np.ndarray:
    import datasketch
    import xxhash

    values = []
    for text in texts:
        minhash = datasketch.MinHash(BANDS * ROWS, hashfunc=xxhash.xxh32_intdigest)
        minhash.update_batch([" ".join(s).encode() for s in shingles(text)])
        values.append(minhash.hashvalues)
    return np.array(values)


def run_datasketch(table: pa.Table, processes: int) -> np.ndarray:
    import datasketch

    texts = table["text"].to_pylist()
    if processes > 1:
        with multiprocessing.Pool(processes) as pool:
            chunks = [texts[i : i + 500] for i in range(0, len(texts), 500)]
            values = np.concatenate(pool.map(_datasketch_values, chunks))
    else:
        values = _datasketch_values(texts)
    index = datasketch.MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
    permutations = datasketch.MinHash(BANDS * ROWS).permutations
    mask = np.ones(len(texts), bool)
    for i, row in enumerate(values):
        minhash = datasketch.MinHash(hashvalues=row, permutations=permutations, scheme="affine32")
        if index.query(minhash):
            mask[i] = False
        else:
            index.insert(i, minhash)
    return mask


def run_rensa(table: pa.Table, processes: int) -> np.ndarray:
    import rensa

    seen = rensa.RMinHashDeduplicator(threshold=0.8, num_perm=BANDS * ROWS, use_lsh=True, num_bands=BANDS)
    texts = table["text"].to_pylist()
    added: list[bool] = []
    for start in range(0, len(texts), 1000):
        chunk = texts[start : start + 1000]
        sets = [[" ".join(s) for s in shingles(text)] for text in chunk]
        added += seen.add_pairs([(str(start + i), tokens) for i, tokens in enumerate(sets)])
    return np.array(added)


def run_rensa_matrix(table: pa.Table, processes: int) -> np.ndarray:
    import rensa

    index = rensa.RMinHashLSH(0.8, BANDS * ROWS, BANDS)
    texts = table["text"].to_pylist()
    flags: list[bool] = []
    for start in range(0, len(texts), 2000):
        sets = [[" ".join(s) for s in shingles(text)] for text in texts[start : start + 2000]]
        matrix = rensa.RMinHash.digest_matrix_from_token_sets(sets, BANDS * ROWS, 42)
        flags += index.insert_matrix_and_query_duplicate_flags(matrix, start)
    return ~np.array(flags, bool)


def run_daft(table: pa.Table, processes: int) -> np.ndarray:
    """Signatures and bands in daft; components by scipy, which is faster than its own loop of joins."""
    import daft
    import daft.functions as fn
    from daft import DataType, col
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    frame = daft.from_arrow(table.append_column("id", pa.array(np.arange(table.num_rows))))
    normal = fn.normalize(col("text"), remove_punct=True, lowercase=True, nfd_unicode=True, white_space=True)
    minhash = fn.minhash(normal, num_hashes=BANDS * ROWS, ngram_size=5, seed=42, hash_function="xxhash")
    signed = frame.select("id", minhash.cast(DataType.list(DataType.uint32())).alias("minhash")).collect()
    edges = []
    for band in range(BANDS):
        key = fn.slice(col("minhash"), band * ROWS, (band + 1) * ROWS).alias("key")
        groups = signed.select("id", key).groupby("key")
        shared = groups.agg(col("id").min().alias("first"), col("id").list_agg().alias("all"))
        edges.append(
            shared.where(fn.list_count(col("all")) > 1).explode("all").select("first", "all").to_arrow()
        )
    joined = pa.concat_tables(edges)
    shape = (table.num_rows, table.num_rows)
    ends = (joined["first"].to_numpy(), joined["all"].to_numpy())
    _, labels = connected_components(coo_array((np.ones(joined.num_rows), ends), shape=shape), directed=False)
    mask = np.zeros(table.num_rows, bool)
    mask[np.unique(labels, return_index=True)[1]] = True
    return mask


def run_text_dedup(table: pa.Table, processes: int) -> np.ndarray:
    """Its command, on a file of the same rows with their numbers."""
    import datasets

    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(
            table.append_column("row", pa.array(np.arange(table.num_rows))), f"{folder}/in.parquet"
        )
        command = [sys.executable, "-m", "text_dedup.minhash", "--path", "parquet", "--split", "train"]
        command += ["--data_files", f"{folder}/in.parquet", "--cache_dir", f"{folder}/cache"]
        command += ["--output", f"{folder}/out", "--column", "text", "--batch_size", "10000", "--ngram", "5"]
        command += [
            "--num_perm",
            str(BANDS * ROWS),
            "--b",
            str(BANDS),
            "--r",
            str(ROWS),
            "--hash_func",
            "xxh3",
        ]
        subprocess.run([*command, "--num_proc", str(processes)], check=True, stdout=sys.stderr)
        mask = np.zeros(table.num_rows, bool)
        mask[datasets.load_from_disk(f"{folder}/out")["row"]] = True
    return mask


class Engine(NamedTuple):
    """How an engine is run; ``most`` documents at most, so that the whole command stays within minutes."""

    module: str
    run: Callable[[pa.Table, int], np.ndarray]
    most: int = 1_000_000
    processes: tuple[int, ...] = (os.cpu_count() or 1,)


ENGINES: dict[str, Engine] = {
    "datamix 18x6 verified (default)": Engine("datamix", datamix_with(True, None, None)),
    "datamix 14x8 verified": Engine("datamix", datamix_with(True, BANDS, ROWS)),
    "datamix 14x8 unverified": Engine("datamix", datamix_with(False, BANDS, ROWS)),
    "daft 14x8": Engine("daft", run_daft),
    "rensa full matrix": Engine("rensa", run_rensa_matrix, 25_000),
    "rensa RMinHashDeduplicator": Engine("rensa", run_rensa, 25_000),
    "datasketch 14x8 xxh32": Engine("datasketch", run_datasketch, 100_000, (1, os.cpu_count() or 1)),
    "text-dedup 14x8 xxh3": Engine("text_dedup", run_text_dedup, 25_000),
}


def run_engine(name: str, source: str, target: str, processes: int) -> None:
    # Piece by piece: as one array the text is copied while it grows (1.5 s of processor time), and read_table imports pandas
    pieces = pq.ParquetFile(source, memory_map=True).iter_batches(5000, columns=["text"])
    table = pa.Table.from_batches(list(pieces))
    np.save(target, ENGINES[name].run(table, processes))


# --- measuring ------------------------------------------------------------------------------------------------------


def whole_process(
    python: str, arguments: list[str], extra: dict[str, str] | None = None
) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak MB (the process and its largest child) of this script run again."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as report:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "REPORT": report.name} | (extra or {})
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        subprocess.run([python, __file__, *arguments], check=True, env=environment)
        wall = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return wall, processor, json.load(report)["peak_mb"]


def report_peak() -> None:
    """Peak resident memory since this program began (``ru_maxrss`` would begin with the parent's), and of its children."""
    own = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")
    )
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    Path(os.environ["REPORT"]).write_text(json.dumps({"peak_mb": (int(own.split()[1]) + children) / 1024}))


def compare(folder: Path, num_documents: int, language: str, with_truth: bool, plan: Plan) -> None:
    texts = corpus(language, num_documents)
    source = folder / f"{language}-{len(texts)}.parquet"
    pq.write_table(pa.table({"text": texts}), source, compression="zstd", row_group_size=5000)
    num_mb = sum(len(text.encode()) for text in texts) / 1e6
    print(f"\n{language}: {len(texts):,} documents, {num_mb:.0f} MB")
    pairs = None
    if with_truth:
        pairs, _ = exact_pairs(texts, 0.8)
        print(f"truth: {len(pairs):,} pairs with Jaccard >= 0.8, by exact join")
    del texts
    runs: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    for _ in range(plan.repeats):  # A/B/A/B: what else the machine does falls on all alike
        for name, engine in ENGINES.items():
            if num_documents <= engine.most and plan.python_of(engine.module):
                for processes in engine.processes:
                    target = folder / f"{name}-{processes}.npy"
                    arguments = ["--engine", name, str(source), str(target), str(processes)]
                    measured = whole_process(plan.python_of(engine.module), arguments)
                    runs.setdefault((name, processes), []).append(measured)
                    print(f"{name}: {measured[0]:.2f} s wall, {measured[1]:.2f} s cpu", file=sys.stderr)
    print(
        f"{'engine':<34}{'wall s':>8}{'cpu s':>8}{'peak MB':>9}{'kept':>9}   recall  precision  clusters lost"
    )
    medians: dict[str, tuple[float, float]] = {}
    for (name, processes), measured in runs.items():
        wall, processor, peak = (statistics.median(column) for column in zip(*measured, strict=True))
        mask = np.load(folder / f"{name}-{processes}.npy")
        title = name if len(ENGINES[name].processes) == 1 else f"{name} {processes}p"
        medians[title] = wall, processor
        scores = ""
        if pairs is not None:
            recall, precision, lost = quality(mask, pairs)
            scores = f"{recall:9.4f}{precision:11.4f}{lost:15,}"
        print(f"{title:<34}{wall:8.2f}{processor:8.2f}{peak:9.0f}{int(mask.sum()):9,}{scores}", flush=True)
    ratios(medians)


class Plan(NamedTuple):
    """How often, and with which interpreter peers run (they ask for other versions of the same packages)."""

    repeats: int
    peers: str
    installed: frozenset[str]  # modules that the peers' interpreter can import

    def python_of(self, module: str) -> str:
        """The interpreter for an engine, empty where it is not installed."""
        return sys.executable if module == "datamix" else self.peers if module in self.installed else ""


def plan_of(repeats: int, peers: str) -> Plan:
    modules = sorted({engine.module for engine in ENGINES.values()} - {"datamix"})
    ask = f"import importlib.util as u; print(*[m for m in {modules} if u.find_spec(m)])"
    found = subprocess.run([peers, "-c", ask], check=True, capture_output=True, text=True).stdout.split()
    for module in sorted(set(modules) - set(found)):
        print(f"{module}: not installed")
    return Plan(repeats, peers, frozenset(found))


def ratios(medians: dict[str, tuple[float, float]]) -> None:
    ours = [name for name in medians if name.startswith("datamix")]
    for peer in (name for name in medians if not name.startswith("datamix")):
        shares = [
            f"{medians[peer][0] / medians[name][0]:.1f}x wall, {medians[peer][1] / medians[name][1]:.1f}x cpu of {name[8:]}"
            for name in ours
        ]
        print(f"  {peer}: {'; '.join(shares)}")


def cold_start(folder: Path) -> None:
    """The first run on a machine: nothing compiled."""
    source = folder / "few.parquet"
    pq.write_table(pa.table({"text": corpus("en", 1000)}), source)
    with tempfile.TemporaryDirectory() as cache:
        arguments = ["--engine", next(iter(ENGINES)), str(source), str(folder / "mask.npy"), "2"]
        for state in ("cold start (nothing compiled)", "warm start"):
            wall, processor, _ = whole_process(sys.executable, arguments, {"NUMBA_CACHE_DIR": cache})
            print(f"{state}: {wall:.2f} s wall, {processor:.2f} s processor, 1,000 documents")


# --- out of core ----------------------------------------------------------------------------------------------------


def generated(num_records: int, seed: int = 7) -> Iterator[list[str]]:
    """Batches of short texts; every fifth is an edit of the one before it, every twentieth a copy."""
    rng = np.random.default_rng(seed)
    for start in range(0, num_records, 10_000):
        count = min(10_000, num_records - start)
        words = rng.integers(0, 50_000, (count, 24))
        for i in range(1, count):
            if i % 20 == 10:
                words[i] = words[i - 1]
            elif i % 5 == 4:
                words[i] = words[i - 1]
                words[i, rng.integers(0, 2) * 23] = 50_000 + i
        yield [" ".join(row) for row in words.astype("U6").tolist()]


def out_of_core(num_records: int) -> None:
    """Sign and decide through files, as a build does; peak memory and the planted duplicates that were found."""
    from datamix.core.records import SCHEMAS
    from datamix.dedup import DedupeSpec, NearSpec, Signed, decide, sign

    spec = DedupeSpec(near=NearSpec())
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        names = [f"{folder}/{name}.arrow" for name in ("records", "signatures")]
        start = time.perf_counter()
        writers: list[pa.ipc.RecordBatchFileWriter] = []
        for number, texts in enumerate(generated(num_records)):
            columns = [[0] * len(texts), list(range(len(texts))), texts, [None] * len(texts)]
            batch = pa.RecordBatch.from_arrays(
                [pa.array(c, f.type) for c, f in zip(columns, SCHEMAS["text"], strict=True)],
                schema=SCHEMAS["text"],
            )
            signed = sign(batch, "text", spec)
            if not number:
                writers = [pa.ipc.new_file(n, b.schema) for n, b in zip(names, (batch, signed), strict=True)]
            writers[0].write_batch(batch)
            writers[1].write_batch(signed)
        for writer in writers:
            writer.close()
        signed_at = time.perf_counter()
        (decision,) = decide([Signed("generated", (names[1],), (names[0],), "text", 0)], spec)
        seconds = time.perf_counter() - signed_at
    places = np.arange(num_records) % 10_000
    copies, edits = places % 20 == 10, (places % 5 == 4) & (places % 20 != 10)
    print(
        f"{num_records:,} records: generated and signed in {signed_at - start:.0f} s, decided in {seconds:.0f} s"
    )
    print(
        f"copies found {np.mean(decision.fate[copies] > 0):.6f}, edits found {np.mean(decision.fate[edits] > 0):.6f}"
    )
    print(f"removed without cause {int((decision.fate[~(copies | edits)] > 0).sum())}")
    status = Path("/proc/self/status").read_text()
    peaks = {
        line.split(":")[0]: int(line.split()[1])
        for line in status.splitlines()
        if line.startswith(("VmHWM", "Rss"))
    }
    print(
        f"peak resident {peaks['VmHWM'] / 1024:.0f} MB, of which file pages now {peaks['RssFile'] / 1024:.0f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, nargs="+", default=[25_000, 100_000])
    parser.add_argument("--repeats", type=int, default=3, help="runs of each engine; the median counts")
    parser.add_argument("--peers", default=sys.executable, help="the Python that has the peers installed")
    parser.add_argument("--languages", nargs="+", default=["en", "zh"])
    parser.add_argument("--records", type=int, help="only the run out of core, with so many records")
    parser.add_argument("--engine", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        run_engine(*arguments.engine[:3], int(arguments.engine[3]))
        report_peak()
        return
    if arguments.records:
        out_of_core(arguments.records)
        return
    if not SHARED.is_dir():
        sys.exit(f"{SHARED} is missing: the benchmark reads its corpus there.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cold_start(folder)
        plan = plan_of(arguments.repeats, arguments.peers)
        for language in arguments.languages:
            sizes = arguments.documents if language == "en" else [min(arguments.documents)]
            for number, size in enumerate(sizes):
                compare(folder, size, language, number == 0 and size <= 25_000, plan)


if __name__ == "__main__":
    main()
