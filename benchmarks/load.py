"""Loading: tokens a second into torch tensors, the first batch, and resuming, beside the loaders of the field.

    python benchmarks/load.py [--work FOLDER] [--peers PYTHON] [--documents 24000] [--rows 1000000]

One set of generated text is built (blocks of 2,048 tokens, so that no loader has to pad) and read from its virtual form,
from Arrow and from Parquet. Peers read the same rows, written by our own exporters: ``datasets`` (torch format, map style
and iterable) from the Parquet files, mosaicml-streaming from MDS, litdata from its chunks. All deliver batches of
[8, 2048] of input_ids, labels and attention_mask as int64, which losses take; MDS and litdata hold int32 and int8,
stacked by torch's own collation and widened. Each runs in a fresh process without workers over the whole set, the first time to
warm the page cache; the best of up to six passes counts and the median of A/B/A/B rounds, by the clock and by processor
time, for the machine may be shared. ``memcpy`` copies the bytes of our int64 batches from one large array to another.

The peers live in an environment of their own, for they pin older packages (torchvision is never used by what is measured; an
empty stand-in is registered):

    pip install torch==2.13.0 mosaicml-streaming==0.13.0 litdata==0.2.76
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
LENGTH, BATCH = 2048, 8
NAMES = ("input_ids", "labels", "attention_mask")
OURS = ("virtual", "arrow", "parquet")
PEERS = ("datasets map", "datasets iterable", "mosaicml-streaming", "litdata")
Speed = tuple[float, float]  # tokens a second of the clock, and of the processor's time
ROUNDS, PASSES, ENOUGH_SECONDS = 3, 6, 3.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, help="where the sets are built, kept between runs")
    parser.add_argument(
        "--peers", default=sys.executable, help="the interpreter that has the streaming peers"
    )
    parser.add_argument("--documents", type=int, default=24_000, help="of about 700 tokens")
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the set that is opened and resumed")
    parser.add_argument("--measure", nargs=2, metavar=("LOADER", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]))))
        return
    with tempfile.TemporaryDirectory() as fallback:
        work = (options.work or Path(fallback)).absolute()
        print_speed(built_blocks(work, options.documents), options.peers)
        print_first(built_rows(work, options.rows), options.rows)


# -- the sets ---------------------------------------------------------------------------------------------------------


def texts(num: int, num_words: int, seed: int) -> Iterator[str]:
    """Documents of made words, no two alike."""
    rng = np.random.default_rng(seed)
    words = np.array(["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 4)) for _ in range(5000)])
    for _ in range(num):
        size = int(rng.integers(num_words // 2, num_words * 3 // 2 + 1))
        yield " ".join(words[rng.integers(0, len(words), size)])


def recipe(work: Path, name: str, num: int, num_words: int, encode: dict[str, Any]) -> dict[str, Any]:
    """Two sources 70 to 30, generated where they are missing."""
    sources = {}
    for number, (source, share) in enumerate((("general", 0.7), ("medical", 0.3))):
        path = work / f"{name}-{source}.jsonl"
        if not path.exists():
            work.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8") as stream:
                stream.writelines(
                    json.dumps({"text": t}) + "\n" for t in texts(round(num * share), num_words, number)
                )
        sources[source] = {"path": str(path), "weight": share}
    tokenizer = str(ROOT / "samples" / "tokenizer")
    return {"name": name, "kind": "pretrain", "tokenizer": tokenizer, "sources": sources, "encode": encode}


def build(work: Path, made: dict[str, Any], write: list[str], suffix: str = "") -> Path:
    import datamix

    out = work / (made["name"] + suffix)
    datamix.build(
        datamix.Recipe.of({**made, "write": write}, work), out, cache=work / ".datamix", overwrite=True
    )
    return out


def built_blocks(work: Path, num: int) -> Path:
    """One set in every form that is read."""
    made = recipe(work, "blocks", num, 400, {"max_length": LENGTH, "pack": "concat"})
    build(work, made, [], "-virtual")
    return build(work, made, ["parquet", "arrow", "mds", "litdata"])


def built_rows(work: Path, num: int) -> Path:
    """Many short rows."""
    made = recipe(work, "rows", num, 8, {"max_length": 64, "pack": "none"})
    build(work, made, [], "-virtual")
    return build(work, made, ["parquet", "arrow"])


# -- the measures -----------------------------------------------------------------------------------------------------


def run(python: str, loader: str, folder: Path) -> dict[str, Any] | None:
    """One measure in a fresh process; None where the loader is not installed there."""
    command = [python, __file__, "--measure", loader, str(folder)]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    if done.returncode:
        if "ModuleNotFoundError" in done.stderr:
            return None
        raise SystemExit(f"{loader} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def print_speed(folder: Path, peers: str) -> None:
    print(f"batches of [{BATCH}, {LENGTH}], input_ids + labels + attention_mask, no workers")
    found: dict[str, list[dict[str, Any]]] = {}
    missing: set[str] = set()
    for _ in range(ROUNDS):
        for loader in ("memcpy", *OURS, *PEERS):
            python = peers if loader in PEERS[2:] else sys.executable
            got = None if loader in missing else run(python, loader, folder)
            if got is None:
                missing.add(loader)
            else:
                found.setdefault(loader, []).append(got)
    for title, key in (("", "tokens_per_second"), (" of processor time", "tokens_per_cpu_second")):
        median = {loader: statistics.median(g[key] for g in values) for loader, values in found.items()}
        fastest = max((median[p] for p in PEERS if p in median), default=float("nan"))
        print(f"\n{'':20s} million tokens/s{title}   x fastest peer   of memcpy")
        for loader, speed in median.items():
            print(
                f"{loader:20s} {speed / 1e6:16.1f} {speed / fastest:16.2f} {speed / median['memcpy']:11.3f}"
            )
    for loader in sorted(missing):
        print(f"{loader:20s} not installed")


def print_first(folder: Path, num_rows: int) -> None:
    print(
        f"\na set of {num_rows:,} rows: milliseconds from opening it to the first batch of 8, in a fresh process"
    )
    late = num_rows * 9 // 10
    print(f"{'':20s} from row 0   resumed at row {late:,}")
    for form in OURS:
        times = []
        for start in (0, late):
            runs = [run(sys.executable, f"{form}@{start}", folder) for _ in range(ROUNDS)]
            times.append(statistics.median(r["milliseconds"] for r in runs if r is not None))
        print(f"{form:20s} {times[0]:10.1f} {times[1]:22.1f}")


def measure(loader: str, folder: Path) -> dict[str, Any]:
    name, _, start = loader.partition("@")
    if start:
        return {"milliseconds": first_batch(name, folder, int(start))}
    if name == "memcpy":
        return memcpy(folder)
    batches = {
        **{form: (lambda form=form: ours(form, folder)) for form in OURS},
        "datasets map": lambda: datasets_map(folder),
        "datasets iterable": lambda: datasets_iterable(folder),
        "mosaicml-streaming": lambda: mosaic(folder),
        "litdata": lambda: litdata(folder),
    }[name]
    began, speeds = time.perf_counter(), [one_pass(batches)]
    while len(speeds) < 2 or (len(speeds) < PASSES and time.perf_counter() - began < ENOUGH_SECONDS):
        speeds.append(one_pass(batches))
    return best(speeds)


def best(speeds: list[Speed]) -> dict[str, Any]:
    wall, cpu = zip(*speeds, strict=True)
    return {"tokens_per_second": max(wall), "tokens_per_cpu_second": max(cpu)}


def one_pass(batches: Callable[[], Iterator[dict[str, Any]]]) -> Speed:
    """Tokens a second over all full batches; a token of each is looked at."""
    stream = batches()
    tokens = seen = 0
    began, spent = time.perf_counter(), time.process_time()
    for batch in stream:
        if isinstance(batch["input_ids"], list):
            continue  # datasets stacks no batch with the short last block of a source
        if not tokens:
            assert all(batch[name].shape == batch["input_ids"].shape for name in NAMES)
        tokens += batch["input_ids"].numel()
        seen += batch["labels"][-1, -1].item()
    seconds, cpu = time.perf_counter() - began, time.process_time() - spent
    assert tokens >= 1000 * LENGTH
    assert seen
    return tokens / seconds, tokens / cpu


def opened(form: str, folder: Path) -> Any:
    """The set in one of its forms; a set with Arrow files is read from Parquet by leaving Arrow out of its manifest."""
    import datamix
    from datamix.load import TrainingSet
    from datamix.load.stores import open_store

    if form == "virtual":
        return datamix.open(folder.with_name(folder.name + "-virtual"))
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["outputs"] = [o for o in manifest["outputs"] if o["format"] == form]
    return TrainingSet(open_store(folder, manifest, "train"), manifest, folder)


def ours(form: str, folder: Path) -> Iterator[dict[str, Any]]:
    yield from opened(form, folder).torch(BATCH)


def first_batch(form: str, folder: Path, start: int) -> float:
    import torch  # noqa: F401  what every trainer has loaded already

    import datamix.load.loader  # noqa: F401

    began = time.perf_counter()
    loader = opened(form, folder).torch(BATCH)
    loader.load_state_dict({**loader.state_dict(), "rows": start})
    next(iter(loader))
    return (time.perf_counter() - began) * 1000


def memcpy(folder: Path) -> dict[str, Any]:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    tokens = min(manifest["packing"]["rows"] * LENGTH, 1 << 24)
    source = np.ones(tokens * len(NAMES), np.int64)
    target = np.zeros_like(source)
    speeds = []
    for _ in range(8):
        began, spent = time.perf_counter(), time.process_time()
        np.copyto(target, source)
        seconds, cpu = time.perf_counter() - began, time.process_time() - spent
        speeds.append((tokens / seconds, tokens / cpu))
    return best(speeds)


def datasets_map(folder: Path) -> Iterator[dict[str, Any]]:
    rows = loaded_parquet(folder).with_format("torch")
    for start in range(0, len(rows) - BATCH, BATCH):
        yield rows[start : start + BATCH]


def datasets_iterable(folder: Path) -> Iterator[dict[str, Any]]:
    rows = loaded_parquet(folder).to_iterable_dataset().with_format("torch")
    yield from rows.iter(BATCH, drop_last_batch=True)


def loaded_parquet(folder: Path) -> Any:
    import datasets

    datasets.disable_progress_bars()
    files = sorted(map(str, (folder / "train").glob("*.parquet")))
    cache = str(folder.with_name("datasets-cache"))
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    return rows.select_columns(list(NAMES))


def mosaic(folder: Path) -> Iterator[dict[str, Any]]:
    stand_in_for_torchvision()
    import streaming

    streaming.base.util.clean_stale_shared_memory()
    rows = streaming.StreamingDataset(local=str(mds_folder(folder)), shuffle=False, batch_size=BATCH)
    return iter(streaming.StreamingDataLoader(rows, batch_size=BATCH, num_workers=0, collate_fn=stacked))


def mds_folder(folder: Path) -> Path:
    return next(p.parent for p in sorted((folder / "mds").rglob("index.json")))


def litdata(folder: Path) -> Iterator[dict[str, Any]]:
    stand_in_for_torchvision()
    import litdata as lit

    place = next(p.parent for p in sorted((folder / "litdata").rglob("index.json")))
    rows = lit.StreamingDataset(str(place), shuffle=False, drop_last=True)
    return iter(lit.StreamingDataLoader(rows, batch_size=BATCH, num_workers=0, collate_fn=stacked))


def stacked(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The default collation over the columns that are compared, as int64; the short last block of a source is left out."""
    from torch.utils.data import default_collate

    batch = default_collate([{n: row[n] for n in NAMES} for row in rows if len(row["labels"]) == LENGTH])
    return {name: values.long() for name, values in batch.items()}


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Modules of torchvision in which every name is an empty class."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__getattr__ = _empty_class  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _empty_class(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


def stand_in_for_torchvision() -> None:
    if not any(isinstance(finder, StandIn) for finder in sys.meta_path):
        sys.meta_path.insert(0, StandIn())


if __name__ == "__main__":
    main()
