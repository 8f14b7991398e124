"""How often a recommendation is wrong, how often it refuses, and how well the laws rank: `python benchmarks/recommend.py RUNS.csv...`

The certificate. In each resample a fit sees n runs of a swarm (n from 2 m + 2 to 6 m, m sources) and a target (a loss, or the mean of up to
13). Among the runs it has not seen it picks the one with the best predicted target and claims that it is better than another one, drawn
at random, or than one drawn from the best quarter by prediction ("near"), or makes no claim. A claim is false where the observed target
is not lower. The regret is that of the chosen run, in standard deviations of the swarm. Then the same with losses shuffled among the runs,
and with losses that are noise: whatever is told of those should be a refusal. Intervals are Wilson's, 95 %.

Then the rank correlations on held-out runs, means over seeded subsets, and the time of a fit with 20 bootstraps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from datamix.fitting.laws import Floats, fit_laws
from datamix.fitting.recommendation import Question, fit, refusal
from datamix.fitting.runs import Runs, read_runs
from datamix.fitting.statistics import spearman
from datamix.fitting.swarm import target_of

SWARMS = Path(__file__).parents[2] / "shared" / "data" / "mixtures"
MAX_TARGETS = 13


@dataclass(frozen=True)
class Trial:
    """One resample: whether it was refused, what it claimed against both baselines and whether that was false, the regret."""

    refused: bool
    claimed: tuple[bool, bool]
    false: tuple[bool, bool]
    regret: float


def trial(path: Path, seed: int, damage: str = "") -> Trial:
    """One resample of a swarm; ``damage``: nothing, ``shuffled`` or ``noise`` (of what the fit sees)."""
    runs, rng = swarm(path), np.random.default_rng(seed)
    m, total = len(runs.sources), len(runs.names)
    sizes = [n for n in (2 * m + 2, 3 * m, 4 * m, 6 * m) if n <= total - 10]
    order = rng.permutation(total)
    size = int(rng.choice(sizes))
    seen, unseen = runs.take(order[:size].tolist()), runs.take(order[size:].tolist())
    used = rng.permutation(len(runs.targets))[: 1 if rng.random() < 0.5 else MAX_TARGETS]
    amounts = np.full(len(used), 1 / len(used))
    losses = seen.losses[:, used]
    if damage == "shuffled":
        losses = losses[rng.permutation(size)]
    elif damage == "noise":
        losses = rng.normal(losses.mean(axis=0), losses.std(axis=0), losses.shape)
    names = tuple(runs.targets[i] for i in used)
    question = Question(Runs(seen.names, seen.sources, names, seen.weights, losses, seen.kinds), amounts)
    model = fit(question)
    assert model is not None
    observed = target_of(unseen.losses[:, used], amounts)
    predicted = target_of(model.predict(unseen.weights), amounts)
    best, refused = int(predicted.argmin()), bool(refusal(question, model))
    near = predicted.argsort()[1 : max(3, len(predicted) // 4)]
    others = [int(rng.choice(np.delete(np.arange(len(predicted)), best))), int(rng.choice(near))]
    claims = [not refused and model.gain(unseen.weights[best], unseen.weights[o]).low > 0 for o in others]
    false = [c and not observed[best] < observed[o] for c, o in zip(claims, others, strict=True)]
    regret = float((observed[best] - observed.min()) / observed.std())
    return Trial(refused, (claims[0], claims[1]), (false[0], false[1]), regret)


_SWARMS: dict[Path, Runs] = {}


def swarm(path: Path) -> Runs:
    if path not in _SWARMS:
        _SWARMS[path] = read_runs(path)
    return _SWARMS[path]


def wilson(hits: int, total: int) -> str:
    """``3/100 = 3.0 % (1.0 to 8.5)``."""
    if not total:
        return "0/0"
    share, z = hits / total, 1.96
    middle = (share + z * z / 2 / total) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (share * (1 - share) / total + z * z / 4 / total**2) ** 0.5
    return f"{hits}/{total} = {share:.1%} ({max(0, middle - half):.1%} to {middle + half:.1%})"


def certificate(paths: Sequence[Path], resamples: int, pool: ProcessPoolExecutor) -> None:
    each = -(-resamples // len(paths))
    for damage in ("", "shuffled", "noise"):
        number = each if not damage else max(1, each // 4)
        everything: list[Trial] = []
        for path in paths:
            found = list(pool.map(partial(trial, path, damage=damage), range(number), chunksize=4))
            everything += found
            if not damage:
                report(path.stem, found)
            else:
                print(
                    f"{path.stem:18} {damage:9} refused {wilson(sum(t.refused for t in found), len(found))}",
                    flush=True,
                )
        if not damage:
            report("all swarms", everything)
        else:
            refused = sum(t.refused for t in everything)
            claims = sum(t.claimed[0] for t in everything)
            print(
                f"{'all swarms':18} {damage:9} refused {wilson(refused, len(everything))}, claims {claims}",
                flush=True,
            )


def report(name: str, trials: Sequence[Trial]) -> None:
    for number, against in enumerate(("random", "near")):
        claims, false = sum(t.claimed[number] for t in trials), sum(t.false[number] for t in trials)
        print(
            f"{name:18} {against:9} false claims {wilson(false, claims)}, claimed {wilson(claims, len(trials))}"
        )
    regret = np.mean([t.regret for t in trials])
    print(
        f"{name:18} {'':9} refused {wilson(sum(t.refused for t in trials), len(trials))}, regret {regret:.3f} sd",
        flush=True,
    )


def figures(num_subsets: int) -> None:
    """Rank correlations on the public swarms, where they are at hand."""
    if not SWARMS.is_dir():
        return
    train = read_runs(SWARMS / "regmix_1m_train.csv")
    others = {name: read_runs(SWARMS / f"regmix_{name}.csv") for name in ("1m_test", "60m", "1b")}
    target = train.targets.index("pile_cc")
    for size in (34, 51, 102, 170):
        found = []
        for seed in range(num_subsets):
            rows = np.random.default_rng(seed).choice(len(train.names), size, replace=False)
            laws = fit_laws(train.weights[rows], train.losses[rows])
            found.append(
                [_rank(laws.predict(o.weights)[:, target], o.losses[:, target]) for o in others.values()]
            )
        told = ", ".join(
            f"{name} {m:.3f} +- {s:.3f}"
            for name, m, s in zip(others, np.mean(found, 0), np.std(found, 0), strict=True)
        )
        print(f"regmix Pile-CC from {size} runs of 1M: {told}", flush=True)
    olmix = read_runs(SWARMS / "olmix_dclm.csv")
    for size in (48, 72, 96):
        ranks = []
        for seed in range(num_subsets):
            order = np.random.default_rng(seed).permutation(len(olmix.names))
            laws = fit_laws(olmix.weights[order[:size]], olmix.losses[order[:size]])
            held_out = order[size:]
            ranks.append(
                _rank(laws.predict(olmix.weights[held_out]).mean(axis=1), olmix.losses[held_out].mean(axis=1))
            )
        print(
            f"olmix dclm, mean loss, from {size} runs: {np.mean(ranks):.3f} +- {np.std(ranks):.3f}",
            flush=True,
        )
    spread = olmix.losses.mean(axis=1).std(ddof=1)
    print(
        f"spread of the runs: regmix Pile-CC {train.losses[:, target].std(ddof=1):.3f}, olmix mean loss {spread:.3f}"
    )
    begin = time.process_time()
    fit(Question(olmix, np.full(len(olmix.targets), 1 / len(olmix.targets))))
    print(
        f"fit, 10 folds and 20 bootstraps of {len(olmix.sources)} x {len(olmix.targets)}: {time.process_time() - begin:.1f} s of processor time"
    )


def _rank(a: Floats, b: Floats) -> float:
    found = spearman(a, b)
    assert found is not None
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="*", type=Path, help="tables of runs; default: the public swarms beside the checkout"
    )
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--subsets", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    paths = asked.runs or [
        SWARMS / f"{name}.csv" for name in ("regmix_1m_train", "regmix_60m", "regmix_1b", "olmix_dclm")
    ]
    begin = time.perf_counter()
    figures(asked.subsets)
    with ProcessPoolExecutor(asked.workers) as pool:
        certificate(paths, asked.resamples, pool)
    print(f"{time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
