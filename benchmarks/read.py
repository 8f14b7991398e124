"""Reading: JSON Lines to prepared Arrow, beside other readers on the same files.

    python benchmarks/read.py [--data ../shared/data] [--scale 1,10] [--rounds 3] [--peers PYTHON]

datamix does what a build does: hash and sniff each file, tell its format, parse strictly (UTF-8, no lone surrogates, exact
integers), shape every record to its kind, hash its content, write Arrow; two workers. ``datasets.load_dataset`` writes
Arrow with two processes, polars streams to Arrow with its own threads, datatrove's ``JsonlReader`` reads without and with its
``ParquetWriter`` behind it (two processes, a file belongs to one), pyarrow's ``read_json`` is the lenient ceiling: any JSON, nothing checked, all in memory.
Each contender runs in a fresh process, in turn, ``--rounds`` times; printed are medians. Time runs from the first call after imports to
the last byte written, the start of workers included; memory is the peak of all resident memory of the process tree.
``--scale 10`` repeats every file ten times inside itself.

``--peers`` names the interpreter that has the peers; for example

    python -m venv peers && peers/bin/pip install datatrove==0.9.0 orjson loguru datasets polars pyarrow
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORKERS = 2
SETS = {
    "pretrain": "pretrain/*.jsonl",
    "sft": "sft_*/shibing624__MedicalGPT/*_format.jsonl",
}
POLL_SECONDS = 0.02


# --- contenders: (files, folder to write to) -> records ---------------------------------------------------------------


def datamix(files: Sequence[str], out: Path) -> Callable[[], int]:
    sys.path.insert(0, str(ROOT))
    import pandas  # noqa: F401  # Arrow imports it with the first list it converts; the peers' imports hold it too

    from datamix.formats import ShapeSpec
    from datamix.pipeline import prepare, scan
    from datamix.pipeline.engine import LocalEngine
    from datamix.pipeline.progress import Screen, run_tasks

    def run() -> int:
        engine, screen = LocalEngine(WORKERS), Screen(quiet=True)
        wanted = scan.SourceRequest("bench", tuple(files), ".")
        looks = scan.tasks(wanted, out, lambda path, places: False)
        found = scan.files(wanted, list(zip(looks, run_tasks(engine, screen, "scan", looks), strict=True)))
        kind = "text" if found[0].kind == "text" else "sft"
        parts = prepare.parts(found, ShapeSpec("", kind), (), None, out)  # type: ignore[arg-type]
        done = run_tasks(engine, screen, "prepare", [part.task for part in parts])
        engine.close()
        return sum(sum(receipt.counts["read"]) for receipt in done)

    return run


def load_dataset(files: Sequence[str], out: Path) -> Callable[[], int]:
    import datasets

    datasets.disable_progress_bars()
    return lambda: len(
        datasets.load_dataset(
            "json", data_files=list(files), split="train", num_proc=WORKERS, cache_dir=str(out)
        )
    )


def polars(files: Sequence[str], out: Path) -> Callable[[], int]:
    import polars

    def run() -> int:
        polars.scan_ndjson(list(files)).sink_ipc(out / "rows.arrow")
        return int(polars.scan_ipc(out / "rows.arrow").select(polars.len()).collect().item())

    return run


def datatrove(files: Sequence[str], out: Path) -> Callable[[], int]:
    return _datatrove(files, out, False)


def datatrove_parquet(files: Sequence[str], out: Path) -> Callable[[], int]:
    return _datatrove(files, out, True)


def _datatrove(files: Sequence[str], out: Path, writes: bool) -> Callable[[], int]:
    import multiprocessing

    import datatrove.pipeline.readers  # noqa: F401
    from loguru import logger

    logger.remove()
    folder = out / "input"
    folder.mkdir()
    for number, file in enumerate(files):
        (folder / f"{number}.jsonl").symlink_to(Path(file).resolve())

    def run() -> int:
        with multiprocessing.get_context("fork").Pool(WORKERS) as pool:
            shares = [(str(folder), str(out / "rows") if writes else None, rank) for rank in range(WORKERS)]
            return sum(pool.starmap(_datatrove_share, shares))

    return run


def _datatrove_share(folder: str, target: str | None, rank: int) -> int:
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import ParquetWriter

    def adapt(_: JsonlReader, row: dict[str, object], path: str, number: int) -> dict[str, object]:
        return {"text": row.pop("text", None) or "-", "id": f"{path}/{number}", "metadata": row}

    reader = JsonlReader(folder, adapter=adapt)
    rows = reader.run(rank=rank, world_size=WORKERS)
    if target is not None:
        rows = ParquetWriter(target, compression=None).run(rows, rank=rank, world_size=WORKERS)
    return sum(1 for _ in rows)


def pyarrow(files: Sequence[str], out: Path) -> Callable[[], int]:
    import pyarrow
    import pyarrow.json

    def run() -> int:
        total = 0
        for number, file in enumerate(files):
            options = pyarrow.json.ReadOptions(block_size=32 << 20)
            table = pyarrow.json.read_json(file, read_options=options)
            with pyarrow.ipc.new_file(str(out / f"{number}.arrow"), table.schema) as writer:
                writer.write_table(table)
            total += table.num_rows
        return total

    return run


CONTENDERS = {
    "datamix": datamix,
    "datasets.load_dataset": load_dataset,
    "polars scan_ndjson": polars,
    "datatrove JsonlReader (reads only)": datatrove,
    "datatrove JsonlReader, ParquetWriter": datatrove_parquet,
    "pyarrow read_json (lenient)": pyarrow,
}


# --- measuring --------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--scale", default="1,10")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", default=sys.executable, help="the interpreter that has the peers")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        contend(given.one[0], given.one[1:])
        return
    for name, pattern in SETS.items():
        files = sorted(given.data.glob(pattern))
        if not files:
            sys.exit(f"{given.data / pattern}: no such files; --data names the folder with the corpora.")
        for scale in map(int, given.scale.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                compare(name, scale, repeated(files, scale, Path(folder)), given)


def repeated(files: Sequence[Path], scale: int, folder: Path) -> list[Path]:
    """Files that hold each file ``scale`` times; kept in memory by the page cache, as the originals are."""
    made = []
    for file in files:
        made.append(folder / file.name)
        content = file.read_bytes()
        content += b"" if content.endswith(b"\n") else b"\n"
        with made[-1].open("wb") as stream:
            for _ in range(scale):
                stream.write(content)
    return made


def compare(name: str, scale: int, files: Sequence[Path], given: argparse.Namespace) -> None:
    """Print one table: every contender in turn, ``rounds`` times."""
    num_bytes = sum(file.stat().st_size for file in files)
    runs: dict[str, list[dict[str, float]]] = {contender: [] for contender in CONTENDERS}
    failed: dict[str, str] = {}
    for _ in range(given.rounds):
        for contender in CONTENDERS:
            if contender not in failed:
                python = sys.executable if contender == "datamix" else given.peers
                found = measured([python, __file__, "--one", contender, *map(str, files)])
                if isinstance(found, str):
                    failed[contender] = found
                else:
                    runs[contender].append(found)
    print(f"\n{name} x {scale}: {len(files)} files, {num_bytes / 1e6:.0f} MB, {WORKERS} workers")
    head = ("seconds", "records/s", "MB/s", "CPU s", "peak MiB", "datamix is")
    print(f"{'':36s}" + "".join(f"{title:>12s}" for title in head))
    own = statistics.median(run["seconds"] for run in runs["datamix"])
    for contender, some in runs.items():
        if contender in failed:
            print(f"{contender:36s} {failed[contender]}")
            continue
        seconds, records, cpu, memory = (
            statistics.median(run[key] for run in some) for key in ("seconds", "records", "cpu", "memory")
        )
        print(
            f"{contender:36s}{seconds:12.2f}{records / seconds:12,.0f}{num_bytes / seconds / 1e6:12.1f}"
            f"{cpu:12.2f}{memory / 2**20:12.0f}{seconds / own:11.2f}x"
        )


def contend(contender: str, files: Sequence[str]) -> None:
    """One run in this process; prints a line of JSON."""
    out = Path(tempfile.mkdtemp())
    try:
        run = CONTENDERS[contender](files, out)
        start, used = time.perf_counter(), time.process_time()
        records = run()
        seconds, cpu = time.perf_counter() - start, time.process_time() - used
        print(json.dumps({"seconds": seconds, "records": records, "cpu": cpu}))
    except ImportError as error:
        print(json.dumps({"missing": str(error.name)}))
    finally:
        shutil.rmtree(out)


def measured(command: Sequence[str]) -> dict[str, float] | str:
    """What one run says of itself, with the CPU seconds of its workers and the peak memory of all; or why it says nothing."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    peak, cpu = 0, dict[int, float]()
    while process.poll() is None:
        tree = _tree(process.pid)
        peak = max(peak, sum(map(_resident, tree)))
        cpu |= {pid: _cpu_seconds(pid) or cpu.get(pid, 0.0) for pid in tree[1:]}
        time.sleep(POLL_SECONDS)
    output, errors = process.communicate()
    if process.returncode:
        return f"failed: {errors.strip().splitlines()[-1] if errors.strip() else process.returncode}"
    found: dict[str, float] = json.loads(output.strip().splitlines()[-1])
    if "missing" in found:
        return f"not installed ({found['missing']})"
    return {**found, "memory": peak, "cpu": found["cpu"] + sum(cpu.values())}


def _tree(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(descendant for child in children for descendant in _tree(int(child)))]


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> int:
    """Bytes of anonymous memory: pages of mapped files can be dropped, and shared ones would count twice."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem")))


if __name__ == "__main__":
    main()
