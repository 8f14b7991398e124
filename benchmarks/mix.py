"""Mixing: how fast the schedule is made, and how far each mixer strays from the asked ratio.

    python benchmarks/mix.py [--rows 10000000] [--large]

Peers run in the same process where they are installed (datasets; megatron-core's compiled blend index; grain); the
others are named as not installed. ``--large`` schedules 100 million rows and prints the peak memory.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix.mix import Available, MixStage, Quota, deviation, epoch_order, schedule, solve
from datamix.mix.passes import Passes
from datamix.mix.rule import PassRows, StageRunner
from datamix.mix.schedule import make_track

NUM_SAMPLES = 60_000
WINDOW = 1024
MIXTURES = {
    "5:1": np.array([5.0, 1.0]),
    "8 long tail": np.array([60, 20, 10, 5, 3, 1.5, 0.4, 0.1]),
    "64 Zipf": 1 / np.arange(1, 65),
}
Sources = NDArray[np.int64]  # source of each sample, in order
Mixer = Callable[[NDArray[np.float64], int], Sources]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--large", action="store_true", help="100 million rows over 12 sources")
    options = parser.parse_args()
    make(np.ones(2), 1000)  # compiles
    print_speed(options.rows)
    if options.large:
        print_large()
    print_ratios()
    print_ratio_in_tokens()


def random_sources(num_sources: int, num_rows: int) -> tuple[list[NDArray[np.int32]], Quota, list[str]]:
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.full(num_sources, 3.0)) + 1e-3
    weights /= weights.sum()
    costs = [rng.integers(5, 4097, int(num_rows * w * 1.05) + 10).astype(np.int32) for w in weights]
    names = [f"source {i}" for i in range(num_sources)]
    stage = MixStage("all", 1.0, None, tuple(weights))
    return costs, solve(available(costs, names), [stage], "tokens", None, "error"), names


def available(costs: Sequence[NDArray[np.int32]], names: Sequence[str]) -> list[Available]:
    return [
        Available(n, len(c), int(c.sum(dtype=np.int64)), 1, int(c.max()), int(c.min()))
        for n, c in zip(names, costs, strict=True)
    ]


def print_speed(num_rows: int) -> None:
    print(f"schedule of {num_rows:,} rows of 5 to 4,096 tokens, million rows/s (best of 3)")
    print("sources  rule alone  permutations alone  whole")
    for num_sources in (4, 12, 64):
        costs, quota, names = random_sources(num_sources, num_rows)

        def order(costs: list[NDArray[np.int32]] = costs, names: list[str] = names) -> None:
            for cost, name in zip(costs, names, strict=True):
                epoch_order(len(cost), 7, name, 0)

        def whole(
            costs: list[NDArray[np.int32]] = costs, quota: Quota = quota, names: list[str] = names
        ) -> None:
            schedule(costs, quota, [1] * len(costs), 7, names)

        alone = min(time_rule(costs, quota, names) for _ in range(3))
        orders = min(timed(order) for _ in range(3))
        both = min(timed(whole) for _ in range(3))
        print(
            f"{num_sources:7d}  {num_rows / alone / 1e6:10.1f}  {num_rows / orders / 1e6:18.1f}  {num_rows / both / 1e6:5.1f}"
        )


def time_rule(costs: list[NDArray[np.int32]], quota: Quota, names: list[str]) -> float:
    """The rule without permutations: every source's rows are loaded, the memory of the result is touched."""
    passes = Passes(costs, [len(c) for c in costs], 7, names)
    for i in range(len(costs)):
        passes.refill(i)
    rows = PassRows(sum(len(c) for c in costs))
    rows.source[:], rows.row[:] = 0, 0
    runner = StageRunner(make_track(quota.stages, 0.0), np.arange(len(costs)), passes, rows)
    half = max(int(c.max()) for c in costs) / 2
    return timed(lambda: runner.run(0, (quota.total, quota.total, half)))


def timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def print_large() -> None:
    costs, quota, names = random_sources(12, 100_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    made = schedule(costs, quota, [1] * 12, 7, names)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{len(made.row):,} rows over 12 sources: {len(made.row) / seconds / 1e6:.1f} million rows/s, peak "
        f"{peak / 2**20:.2f} GiB of the process (before: {before / 2**20:.2f}, the rows' costs included)"
    )


def make(weights: NDArray[np.float64], num_samples: int) -> Sources:
    """Ours, all rows alike."""
    costs = [np.ones(num_samples, np.int32)] * len(weights)
    names = [f"source {i}" for i in range(len(weights))]
    quota = solve(
        available(costs, names), [MixStage("all", 1.0, None, tuple(weights))], "records", num_samples, "error"
    )
    return schedule(costs, quota, [1] * len(weights), 7, names).source.astype(np.int64)


def with_datasets(weights: NDArray[np.float64], num_samples: int) -> Sources:
    datasets = importlib.import_module("datasets")
    parts = [
        datasets.Dataset.from_dict({"source": np.full(int(num_samples * w * 1.5) + 500, i)})
        for i, w in enumerate(weights / weights.sum())
    ]
    mixed = datasets.interleave_datasets(
        parts, probabilities=(weights / weights.sum()).tolist(), seed=7, stopping_strategy="first_exhausted"
    )
    return np.array(mixed["source"][:num_samples])


def with_megatron(weights: NDArray[np.float64], num_samples: int) -> Sources:
    # The compiled helper stands alone: loaded by its file, it needs no torch.
    files = importlib.metadata.files("megatron-core") or []
    library = next(f for f in files if "helpers_cpp" in f.name and f.suffix == ".so")
    spec = importlib.util.spec_from_file_location("helpers_cpp", str(library.locate()))
    if spec is None or spec.loader is None:
        raise ImportError(str(library))
    helpers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(helpers)
    source, row = np.zeros(num_samples, np.int16), np.zeros(num_samples, np.int64)
    helpers.build_blending_indices(source, row, weights / weights.sum(), len(weights), num_samples, False)
    return source.astype(np.int64)


def with_grain(weights: NDArray[np.float64], num_samples: int) -> Sources:
    grain = importlib.import_module("grain")
    parts = [grain.MapDataset.source([i]).repeat() for i in range(len(weights))]
    mixed = grain.MapDataset.mix(parts, weights / weights.sum())
    return np.array([mixed[i] for i in range(num_samples)])


MIXERS: dict[str, Mixer] = {
    "datamix": make,
    "datasets.interleave_datasets": with_datasets,
    "megatron-core blend index": with_megatron,
    "grain MapDataset.mix": with_grain,
}
STREAMS_ONLY = ("streaming", "litdata")  # mix while they stream, rank by rank: measured with the loader


def print_ratios() -> None:
    print(
        f"\nratio error over {NUM_SAMPLES:,} samples, in samples: largest prefix / any window of {WINDOW} / worst source at the end"
    )
    print(f"{'':30s}" + "".join(f"{name:>28s}" for name in MIXTURES))
    for name, mixer in MIXERS.items():
        cells = []
        for weights in MIXTURES.values():
            try:
                prefix, window, end = errors(mixer(weights, NUM_SAMPLES), weights / weights.sum())
            except (ImportError, StopIteration, importlib.metadata.PackageNotFoundError):
                cells.append("not installed")
            else:
                cells.append(f"{prefix:.2f} / {window:.2f} / {end:.1%}")
        print(f"{name:30s}" + "".join(f"{cell:>28s}" for cell in cells))
    for name in STREAMS_ONLY:
        state = "see the loader's benchmark" if importlib.util.find_spec(name) else "not installed"
        print(f"{name:30s}{state:>28s}")


def errors(source: Sources, shares: NDArray[np.float64]) -> tuple[float, float, float]:
    """Largest deviation of a prefix and of a window, and the worst relative error of a source at the end."""
    prefix = window = end = 0.0
    places = np.arange(len(source) + 1)
    for s, share in enumerate(shares):
        off = np.concatenate([[0], np.cumsum(source == s)]) - places * share
        prefix = max(prefix, float(np.abs(off).max()))
        window = max(window, float(np.abs(off[WINDOW:] - off[:-WINDOW]).max()))
        end = max(end, float(abs(off[-1]) / (share * len(source))))
    return prefix, window, end


def print_ratio_in_tokens() -> None:
    """Rows of unlike length: what the share of tokens comes to when rows are drawn by the asked share."""
    rng = np.random.default_rng(3)
    shares = np.array([0.7, 0.2, 0.1])
    costs = [np.clip(rng.lognormal(m, 0.8, NUM_SAMPLES), 1, 4096).astype(np.int32) for m in (6.0, 5.0, 4.0)]
    names = ["long rows", "middle", "short rows"]
    total = 5_000_000
    quota = solve(
        available(costs, names), [MixStage("all", 1.0, None, tuple(shares))], "tokens", total, "error"
    )
    found = deviation(schedule(costs, quota, [1] * 3, 7, names), costs, quota)
    print(f"\nshares of tokens where rows differ, asked 70 / 20 / 10 %, {total:,} tokens")
    print(
        f"datamix: off by at most {found.max_prefix:.0f} tokens after any row; the largest row has {found.bound:.0f}"
    )
    source = with_datasets(shares, 10_000)
    tokens = np.array([costs[s][: np.count_nonzero(source == s)].sum() for s in range(3)])
    text = " / ".join(f"{100 * t / tokens.sum():.1f}" for t in tokens)
    print(f"datasets.interleave_datasets with these probabilities: {text} %")


if __name__ == "__main__":
    main()
