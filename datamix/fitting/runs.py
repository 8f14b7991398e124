"""``runs.csv``: weights and losses of runs as arrays, and every way such a table can be wrong in words.

Columns: ``run``, ``weight:NAME`` a source, ``loss:NAME`` a target (lower is better), optionally ``params``, ``tokens``, ``step``.
An empty loss (or ``nan``) is one that is missing: the run counts for the other targets. A row without weights, or called ``base``, is
the model before training: losses are compared with it, and no law is fitted to it. ``join_losses`` fills the table from the
``losses.jsonl`` of the runs.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamix.core.errors import RecipeError, nearest
from datamix.core.losses import read_losses

Floats = NDArray[np.float64]
Kind = tuple[float | None, ...]  # params, tokens, step of a run; None where the table does not say

RUNS = "runs.csv"
LOSSES = "losses.jsonl"
BASE = "base"
KINDS = ("params", "tokens", "step")
_WEIGHT, _LOSS = "weight:", "loss:"
_SLACK = 0.01  # of a sum of weights
_SAME = 1e-6  # weights closer than this are the same mixture
_EXAMPLE = "run,weight:general,weight:medical,loss:general,loss:medical"


@dataclass(frozen=True)
class Runs:
    """Mixtures and what came of them."""

    names: tuple[str, ...]
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    weights: Floats  # [num_runs, num_sources], each row sums to 1
    losses: Floats  # [num_runs, num_targets], nan where missing
    kinds: tuple[Kind, ...]
    bases: Mapping[str, Floats] = field(
        default_factory=dict
    )  # losses [num_targets] of models before training
    notes: tuple[str, ...] = ()

    def take(self, rows: Sequence[int]) -> Runs:
        """Some of the runs."""
        return replace(
            self,
            names=tuple(self.names[i] for i in rows),
            weights=self.weights[list(rows)],
            losses=self.losses[list(rows)],
            kinds=tuple(self.kinds[i] for i in rows),
        )

    def merged(self, members: Mapping[str, Sequence[str]]) -> Runs:
        """Sources as parts of what they belong to: weights are added up by group."""
        columns = [[self.sources.index(name) for name in names] for names in members.values()]
        weights = np.stack([self.weights[:, c].sum(axis=1) for c in columns], axis=1)
        return replace(self, sources=tuple(members), weights=weights)

    def mixtures(self) -> NDArray[np.int64]:
        """The number of each run's mixture, ``[num_runs]``: runs of one mixture and kind repeat each other."""
        keys = [
            (kind, *np.rint(row / _SAME).tolist()) for kind, row in zip(self.kinds, self.weights, strict=True)
        ]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        return np.array([numbers[key] for key in keys], np.int64)


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows of a runs.csv, as text. Raises RecipeError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"{path} cannot be read as a table of runs: {error}. Name a CSV in UTF-8, with a header such as {_EXAMPLE}."
        ) from None
    lines = [line for line in csv.reader(io.StringIO(text, newline="")) if any(cell.strip() for cell in line)]
    if not lines:
        raise RecipeError(f"{path} is empty. Its first line should be a header such as {_EXAMPLE}.")
    header = [name.strip() for name in lines[0]]
    if twice := {name for name in header if header.count(name) > 1}:
        raise RecipeError(
            f"{path}: the column {sorted(twice)[0]!r} stands there twice. Remove or rename one."
        )
    for number, line in enumerate(lines[1:], 2):
        if len(line) > len(header):
            raise RecipeError(
                f"{path}, row {number}: {len(line)} cells under {len(header)} columns. Names that hold commas need quotes."
            )
    rows = [dict(zip(header, [*line, *[""] * (len(header) - len(line))], strict=True)) for line in lines[1:]]
    return header, rows


def read_runs(path: Path, need_losses: bool = True) -> Runs:
    """The runs of a CSV. Raises RecipeError: no such file, columns that are missing, cells that are no numbers, weights that
    do not sum to 1, no loss at all (where they are needed)."""
    header, rows = read_table(path)
    sources = [name.removeprefix(_WEIGHT) for name in header if name.startswith(_WEIGHT)]
    targets = [name.removeprefix(_LOSS) for name in header if name.startswith(_LOSS)]
    if not sources or (need_losses and not targets):
        lacking = f"{_WEIGHT}NAME" if not sources else f"{_LOSS}NAME"
        raise RecipeError(
            f"{path}: there is no column {lacking}; its columns are {', '.join(header[:8])}. "
            f"A header looks like {_EXAMPLE}."
        )
    if not rows:
        raise RecipeError(f"{path} holds a header and no runs. Each run is a row below it.")
    table = _Table(path, rows)
    names = [row.get("run", "").strip() or str(number) for number, row in enumerate(rows, 1)]
    weights = np.stack([table.column(_WEIGHT + name) for name in sources], axis=1)
    losses = np.full((len(rows), 0), np.nan)
    if targets:
        losses = np.stack([table.column(_LOSS + name) for name in targets], axis=1)
    losses[~np.isfinite(losses)] = np.nan
    kinds = table.kinds([name for name in KINDS if name in header])
    without = ~(np.nan_to_num(weights) != 0).any(axis=1)  # no weights: a model before training
    before = [i for i, name in enumerate(names) if name == BASE or without[i]]
    bases = {names[i]: losses[i] for i in before}
    kept = [i for i in range(len(rows)) if i not in before]
    if need_losses and (not kept or not np.isfinite(losses[kept]).any()):
        raise RecipeError(
            f"{path}: none of its {len(kept)} runs has a loss yet. Train them, fill the {_LOSS}NAME columns (or put each run's "
            f"{LOSSES} into its folder and name that folder's parent), and run the command again."
        )
    normal, notes = _normalised(path, [names[i] for i in kept], weights[kept])
    notes += _missing(targets, losses[kept])
    runs = Runs(tuple(names), tuple(sources), tuple(targets), weights, losses, kinds, bases)
    return replace(runs.take(kept), weights=normal, notes=tuple(notes))


@dataclass(frozen=True)
class _Table:
    path: Path
    rows: Sequence[Mapping[str, str]]

    def column(self, name: str) -> Floats:
        """Numbers of a column, nan where a cell is empty."""
        return np.array([self._number(number, name, row[name]) for number, row in enumerate(self.rows, 2)])

    def kinds(self, names: Sequence[str]) -> tuple[Kind, ...]:
        columns = {name: self.column(name) for name in names}
        if "tokens" in columns:
            columns["tokens"] = _of_one_length(columns["tokens"])
        return tuple(
            tuple(
                None if name not in columns or math.isnan(columns[name][i]) else float(columns[name][i])
                for name in KINDS
            )
            for i in range(len(self.rows))
        )

    def _number(self, row: int, name: str, cell: str) -> float:
        text = cell.strip()
        if not text:
            return math.nan
        try:
            return float(text)
        except ValueError:
            raise RecipeError(
                f"{self.path}, row {row}, column {name}: {text!r} is no number. Write one, or leave the cell empty where there is none."
            ) from None


def _of_one_length(tokens: Floats) -> Floats:
    """Tokens of runs as long as each other, up to a percent (rows differ in size), as those of the shortest."""
    alike, first = tokens.copy(), -math.inf
    for i in np.argsort(tokens, kind="stable"):  # nan is last
        if not tokens[i] <= first * 1.01:
            first = float(tokens[i])
        alike[i] = first
    return alike


def _normalised(path: Path, names: Sequence[str], weights: Floats) -> tuple[Floats, list[str]]:
    """Weights that sum to 1 exactly, and a sentence where they did not. Raises RecipeError beyond rounding."""
    for name, row in zip(names, weights, strict=True):
        if not np.isfinite(row).all() or (row < 0).any():
            raise RecipeError(
                f"{path}, run {name}: every weight should be a number of at least 0; it has "
                f"{', '.join('nothing' if math.isnan(x) else f'{x:g}' for x in row[~np.isfinite(row) | (row < 0)][:3])}."
            )
    sums = weights.sum(axis=1)
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst] - 1) > _SLACK:
        advice = (
            "divide them by 100"
            if abs(sums[worst] - 100) < 1
            else "give shares of the whole, one column a source"
        )
        raise RecipeError(
            f"{path}, run {names[worst]}: its weights sum to {sums[worst]:.4g}, and they should sum to 1 (within {_SLACK:g}); {advice}."
        )
    off = int((np.abs(sums - 1) > _SAME).sum())
    note = f"The weights of {off} of {len(sums)} runs sum to 1 only within {np.abs(sums - 1).max():.2g}; they were normalised."
    return weights / sums[:, None], [note] if off else []


def _missing(targets: Sequence[str], losses: Floats) -> list[str]:
    gaps = ~np.isfinite(losses)
    notes = []
    if empty := [name for name, gap in zip(targets, gaps.T, strict=True) if gap.all()]:
        notes.append(
            f"No run has a loss of {', '.join(empty[:5])}{' ...' if len(empty) > 5 else ''}: left out."
        )
    partly = int((gaps.any(axis=1) & ~gaps.all(axis=1)).sum()) if not empty else 0
    if whole := int(gaps.all(axis=1).sum()):
        notes.append(f"{whole} of {len(losses)} runs have no losses: left out.")
    if partly:
        notes.append(f"{partly} of {len(losses)} runs lack some losses: they count for the others.")
    return notes


def where(runs: Runs, conditions: Sequence[str]) -> Runs:
    """The runs that meet every ``COLUMN=VALUE`` (params, tokens, step, run). Raises RecipeError where none does."""
    for condition in conditions:
        column, equals, value = condition.partition("=")
        name = column.strip()
        if not equals or name not in (*KINDS, "run"):
            raise RecipeError(
                f"--where {condition}: should be COLUMN=VALUE, the column one of {', '.join((*KINDS, 'run'))}."
            )
        test = _condition(name, value.strip(), condition)
        rows = [i for i in range(len(runs.names)) if test(runs, i)]
        if not rows:
            seen = list(dict.fromkeys(_shown(runs, name, i) for i in range(len(runs.names))))
            raise RecipeError(f"--where {condition}: no run has it; there are {', '.join(seen[:8])}.")
        runs = runs.take(rows)
    return runs


def _condition(name: str, value: str, condition: str) -> Callable[[Runs, int], bool]:
    if name == "run":
        return lambda runs, i: runs.names[i] == value
    try:
        number = float(value)
    except ValueError:
        raise RecipeError(f"--where {condition}: {value!r} is no number.") from None
    slack = 0.01 if name == "tokens" else 0.0

    def test(runs: Runs, i: int) -> bool:
        value = runs.kinds[i][KINDS.index(name)]
        return value is not None and abs(value - number) <= slack * number

    return test


def _shown(runs: Runs, name: str, i: int) -> str:
    if name == "run":
        return runs.names[i]
    value = runs.kinds[i][KINDS.index(name)]
    return "none" if value is None else f"{value:g}"


def base_losses(runs: Runs, name: str | None) -> Floats:
    """The losses ``[num_targets]`` of the run that ``base`` stands for. Raises RecipeError where there is none."""
    if name is None:
        if BASE in runs.bases:
            return runs.bases[BASE]
        raise RecipeError(
            f"--keep compares with the model before training, and no run is called {BASE}. Add a row {BASE} with its losses "
            "(its weights stay empty), or name a run with --base."
        )
    if name in runs.bases:
        return runs.bases[name]
    if name in runs.names:
        return np.asarray(runs.losses[runs.names.index(name)])
    close = nearest(name, (*runs.bases, *runs.names))
    hint = f"did you mean {close}?" if close else f"there are {', '.join((*runs.bases, *runs.names)[:8])}."
    raise RecipeError(f"--base {name}: no run has this name; {hint}")


def join_losses(folder: Path) -> int:
    """Fill the ``runs.csv`` of a folder from the ``losses.jsonl`` below it, one a run; how many runs had one.

    The last validation loss of each source counts; step 0 of all runs, averaged, is the row ``base``. Raises RecipeError.
    """
    path = folder / RUNS
    if not path.is_file():
        raise RecipeError(
            f"{folder} holds no {RUNS}. Name a table of runs, or the folder that `datamix propose` left."
        )
    header, rows = read_table(path)
    rows = [
        row
        for row in rows
        if row.get("run", "").strip() != BASE or any(row[n].strip() for n in row if n != "run")
    ]
    starts: dict[str, list[float]] = {}
    joined = 0
    for row in rows:
        name = row.get("run", "").strip()
        file = folder / name / LOSSES
        if not name or Path(name).name != name or not file.is_file():
            continue
        joined += 1
        for source, first, last in _validation(file):
            column = _LOSS + source
            header += [column] if column not in header else []
            if last is not None:
                row[column] = f"{last:.6g}"
            if first is not None:
                starts.setdefault(column, []).append(first)
    if joined:
        rows = [row for row in rows if row.get("run", "").strip() != BASE or not starts]
        if starts:
            rows.append(
                {"run": BASE, **{column: f"{np.mean(values):.6g}" for column, values in starts.items()}}
            )
        write_table(path, header, rows)
    return joined


def _validation(file: Path) -> Iterator[tuple[str, float | None, float | None]]:
    """Source, loss before training and last loss after some; of the whole where no source has its own."""
    curves = read_losses(file)
    named = {
        source: line
        for (source, split), line in curves.items()
        if split == "validation" and source is not None
    }
    for source, line in named.items():
        first = line[0].loss if line[0].step == 0 else None
        yield source, first, line[-1].loss if line[-1].step > 0 else None


def write_table(path: Path, header: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    """Write a table in one move: a reader sees the old one or the new one."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([row.get(name, "") for name in header] for row in rows)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text.getvalue(), encoding="utf-8")
    fresh.replace(path)
