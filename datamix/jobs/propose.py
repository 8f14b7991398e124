"""``datamix propose``: mixtures to train, as virtual sets from one preparation, and the table of runs to fill.

The first four are the recipe's own weights, proportional, uniform and UniMax; the rest are drawn around the UniMax-tempered prior and
chosen so that the next is always far from all before it (``fitting/design.py``): of N and N + 1 runs the first N are the same. With two
sources, or two groups, they are a ladder of one share. Costs one preparation, then integers; a set is about ten bytes a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix import mix
from datamix.core.errors import RecipeError
from datamix.core.machine import failures_at
from datamix.fitting.design import Space, choose
from datamix.fitting.runs import RUNS, read_table, write_table
from datamix.jobs.build import finish, with_weights
from datamix.mix.quota import fill
from datamix.pipeline import prepare_sources, translate
from datamix.pipeline.out_folder import check_out
from datamix.pipeline.prepare_sources import BuildContext
from datamix.pipeline.progress import Screen
from datamix.pipeline.publish import hold
from datamix.pipeline.steps import (
    Decided,
    Options,
    ResolvedBuild,
    decide_and_pack,
    mix_rows,
    open_context,
    preflight,
)
from datamix.recipe import Recipe
from datamix.tokenize import TokenizerFiles

Floats = NDArray[np.float64]

FIRST = ("recipe", "proportional", "uniform", "unimax")
_LEAST_SHARE = 0.002  # of a source that is in a mixture


@dataclass(frozen=True)
class Mixtures:
    """What a recipe's sources can be mixed to: names, sizes, caps, and the four mixtures that need no runs. Shares sum to 1."""

    names: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]  # what has a weight of its own: a group, or a source without one
    parts: tuple[Floats, ...]  # of each such group, how its members share it in the recipe
    available: tuple[mix.Available, ...]
    total: float  # in the unit of the mixture
    caps: Floats  # largest share of each source at this total
    least: Floats  # smallest share of each source that surely has rows
    known: Mapping[str, Floats]  # by the names of FIRST
    validated: tuple[str, ...]  # sources that have validation rows

    def space(self) -> Space:
        """Where mixtures are proposed: over the groups where there are two of them, else over the sources."""
        if len(self.groups) == 2 and len(self.names) > 2:
            where = [[self.names.index(name) for name in members] for members in self.groups.values()]
            caps = np.array(
                [
                    min(1.0, float((self.caps[i] / np.maximum(p, 1e-12)).min()))
                    for i, p in zip(where, self.parts, strict=True)
                ]
            )
            least = np.array(
                [
                    float((self.least[i] / np.maximum(p, 1e-12)).max())
                    for i, p in zip(where, self.parts, strict=True)
                ]
            )
            prior = np.array([float(self.known["unimax"][i].sum()) for i in where])
            return Space(prior, caps, np.minimum(least, 0.5), self.parts)
        singles = tuple(np.ones(1) for _ in self.names)
        return Space(self.known["unimax"], self.caps, self.least, singles)


@dataclass(frozen=True)
class Pool:
    """A prepared recipe: everything that further mixtures share."""

    recipe: Recipe
    tokenizer: TokenizerFiles
    decided: Decided
    context: BuildContext
    mixtures: Mixtures
    scale: float = 1.0

    def mixed(self, weights: Floats, name: str, size: float) -> ResolvedBuild:
        """One mixture as a virtual set, ordered and checked. Raises RecipeError."""
        shares = dict(zip(self.mixtures.names, weights.tolist(), strict=True))
        rung = with_weights(self.recipe, shares, name, self.scale)
        fixed = rung.mix.model_copy(
            update={"size": max(1, round(size)), "replay": None, "on_short": "reweigh"}
        )
        rung = rung.model_copy(update={"mix": fixed})
        rung._base = self.recipe.base
        return ResolvedBuild(
            rung, self.tokenizer, self.decided, mix_rows(rung, self.context, self.decided, self.scale)
        )


@contextmanager
def prepared(
    recipe: Recipe, options: Options, scale: float, screen: Screen, outs: list[Path] | None = None
) -> Iterator[Pool]:
    """The recipe prepared and packed, and what can be mixed of it. Raises DatamixError."""
    if recipe.mix.stages:
        raise RecipeError(
            "The recipe has stages, and runs that differ in one mixture are needed: write the stage that is asked about as the whole recipe."
        )
    context = open_context(options, screen, outs or [options.out])
    try:
        tokenizer = preflight(recipe)
        encode = translate.encode_spec(recipe, tokenizer)
        works = translate.source_works(recipe, encode, options.sample)
        decided = decide_and_pack(recipe, context, encode, prepare_sources.prepare_sources(context, works))
        yield Pool(recipe, tokenizer, decided, context, _mixtures(recipe, decided, scale), scale)
    finally:
        context.close()


def _mixtures(recipe: Recipe, decided: Decided, scale: float) -> Mixtures:
    packed = decided.packed[: len(recipe.sources)]
    available = translate.available(recipe, packed, scale)
    size = recipe.mix.size
    scaled = (
        recipe.mix.model_copy(update={"size": max(1, round(size * scale))})
        if isinstance(size, int)
        else recipe.mix
    )
    quota = translate.quota(recipe.model_copy(update={"mix": scaled}), available, rows_known=True)
    sizes, most = np.array([float(a.cost) for a in available]), np.array([a.most for a in available])
    total = float(quota.total)
    rows = max(a.largest_row for a in available)
    caps = np.minimum(1.0, most / total)

    def shares(amounts: Any) -> Floats:
        return np.asarray(fill(np.asarray(amounts, float), caps, 1.0))

    groups: dict[str, list[str]] = {}
    for name, source in recipe.sources.items():
        groups.setdefault(source.group or name, []).append(name)
    own = np.asarray(quota.shares)
    names = tuple(recipe.sources)
    parts = []
    for members in groups.values():
        where = [names.index(name) for name in members]
        held = own[where] if own[where].sum() > 0 else sizes[where]
        parts.append(held / held.sum())
    unimax = shares(np.ones(len(names)))
    known = {
        "recipe": own,
        "proportional": shares(sizes),
        "uniform": np.full(len(names), 1 / len(names)),
        "unimax": unimax / unimax.sum(),
    }
    known["proportional"] = known["proportional"] / known["proportional"].sum()
    validated = [
        s.name for s, r in zip(decided.sources, decided.packed, strict=True) if r.counts["validation"]["rows"]
    ]
    return Mixtures(
        names, {g: tuple(m) for g, m in groups.items()}, tuple(parts), tuple(available), total, caps,
        np.full(len(names), max(_LEAST_SHARE, 2.0 * rows / total)), known, tuple(validated or names),
    )  # fmt: skip


def propose(
    recipe: Recipe, num_runs: int, options: Options, scale: float = 1.0, screen: Screen | None = None
) -> dict[Path, dict[str, Any]]:
    """Build ``num_runs`` virtual sets below ``options.out`` and its ``runs.csv``; return the manifests by folder.

    Losses that ``runs.csv`` holds already stay. Raises RecipeError: fewer than five runs, a mixture that cannot be made, a folder
    with other mixtures.
    """
    if num_runs < len(FIRST) + 1:
        raise RecipeError(
            f"--runs {num_runs}: at least {len(FIRST) + 1} are needed: the first four are {', '.join(FIRST)}; two sources are told from "
            "about 6 runs, m sources from 2 m + 2, well from 3 m."
        )
    if not 0 < scale <= 1:
        raise RecipeError(
            f"--scale {scale:g}: should be above 0 and at most 1; 0.1 is a tenth of every source and of the size."
        )
    names = run_names(num_runs)
    outs = [options.out / name for name in names]
    for out in outs:
        check_out(out, options.cache, recipe.model_copy(update={"write": ()}), overwrite=True)
    with prepared(recipe, options, scale, screen or Screen(quiet=True), outs) as pool:
        if len(pool.mixtures.names) < 2:
            raise RecipeError("The recipe has one source, and there is nothing to mix. Add a source.")
        chosen = [pool.mixtures.known[name] for name in FIRST]
        chosen += list(choose(pool.mixtures.space(), chosen, num_runs - len(FIRST), recipe.seed))
        built = []
        for name, weights in zip(names, chosen, strict=True):
            try:
                built.append(pool.mixed(weights, name, pool.mixtures.total))
            except RecipeError as error:
                raise RecipeError(f"run {name}: {error}") from None
        reached = [
            np.asarray(made.arranged.quota.shares) for made in built
        ]  # where caps moved what was chosen
        table = _table(options.out / RUNS, pool.mixtures, names, reached)
        manifests: dict[Path, dict[str, Any]] = {}
        for out, made in zip(outs, built, strict=True):
            of_run = replace(options, out=out)
            out.parent.mkdir(parents=True, exist_ok=True)
            with hold(out, made.recipe, of_run, pool.context.screen):
                manifests[out] = finish(made, of_run, pool.context)
        with failures_at(options.out, "writing the table of runs", "choose another folder with -o"):
            write_table(options.out / RUNS, *table)
            (options.out / "README.md").write_text(_readme(options.out, pool, names), encoding="utf-8")
        return manifests


def run_names(num_runs: int) -> list[str]:
    """``recipe, proportional, uniform, unimax, mix-005, ...``."""
    return [*FIRST, *(f"mix-{number:03d}" for number in range(len(FIRST) + 1, num_runs + 1))]


def _table(
    path: Path, mixtures: Mixtures, names: list[str], chosen: list[Floats]
) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows of ``runs.csv``, with what an earlier one holds. Raises RecipeError where its weights are others."""
    header = [
        "run",
        *(f"weight:{name}" for name in mixtures.names),
        *(f"loss:{name}" for name in mixtures.validated),
    ]
    rows = []
    for name, weights in zip(names, chosen, strict=True):
        cells = {f"weight:{n}": f"{w:.6g}" for n, w in zip(mixtures.names, weights, strict=True)}
        rows.append({"run": name, **cells})
    if not path.exists():
        return header, rows
    old_header, old_rows = read_table(path)
    by_name = {row.get("run", ""): row for row in old_rows}
    for row in rows:
        old = by_name.pop(row["run"], None)
        if old is None:
            continue
        columns = [name for name in header if name.startswith("weight:")]
        if any(
            name not in old or not old[name] or abs(float(old[name]) - float(row[name])) > 1e-4
            for name in columns
        ):
            raise RecipeError(
                f"{path} holds other mixtures (run {row['run']}): recipe, inputs or --scale are not those it was made from. Name "
                "another folder with -o, or move this one away."
            )
        row.update({name: cell for name, cell in old.items() if not name.startswith("weight:")})
    header += [name for name in old_header if name not in header]
    return header, rows + list(by_name.values())


def _readme(folder: Path, pool: Pool, names: list[str]) -> str:
    """How to train the runs and how their losses come back."""
    mixtures = pool.mixtures
    shrunk = f" Sources and size are {pool.scale:g} of the recipe's." if pool.scale != 1 else ""
    callback = (
        "`datamix.LossCallback` measures the validation loss of every source before the first step and every so many steps, and\n"
        "writes `losses.jsonl` into the folder of the run. Nothing has to be copied:"
        if pool.recipe.validation is not None
        else "The recipe holds no validation rows, so losses have to be measured elsewhere and written into `runs.csv`. With\n"
        "`validation: {share: 0.01}` in the recipe they come back by themselves:"
    )
    return f"""# {len(names)} mixtures of {pool.recipe.name}

Every folder here ({names[0]}, {names[1]}, ... {names[-1]}) is a virtual set: a schedule over one preparation, {mixtures.total:,.0f}
{pool.recipe.unit.replace("_", " ")} each.{shrunk} `{RUNS}` holds their weights; its `loss:` columns are empty.

## Train each run

Alike in everything but the mixture: model, start, steps, learning rate. A small proxy model is enough to rank mixtures. Give runs
of the same mixture (uniform and unimax often are) other training seeds: their difference tells the noise.

```python
import datamix

rows = datamix.open("{folder.name}/{names[0]}")  # as any set: rows, torch, datasets
```

For a trainer that reads files: `datamix export {folder.name}/{names[0]} --to parquet` (or its own format).

## How the losses come back

{callback}

```python
Trainer(..., callbacks=[datamix.LossCallback("{folder.name}/{names[0]}", every=100)])
```

Or fill the `loss:` columns by hand (lower is better, any scale; further `loss:NAME` columns are welcome), and leave empty what is
missing.

## The answer

```
datamix recommend {folder.name} --recipe RECIPE.yaml -o recommended
```
"""
