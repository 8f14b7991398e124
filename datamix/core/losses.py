"""``losses.jsonl``: the losses of one training run, a line a measurement, and how they are read again.

A line is ``{"step": 100, "tokens": 819200, "source": "general", "split": "validation", "loss": 2.31}``: nats per trained token,
tokens trained so far, ``source: null`` for the whole, step 0 for the model before training. A run that resumes measures some
steps again: the last line of a (step, source, split) counts. Costs a few dozen bytes of memory a line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamix.core.errors import RecipeError

SPLITS = ("validation", "train")
_FIELDS = ("step", "tokens", "source", "split", "loss")
_EXAMPLE = '{"step": 100, "tokens": 819200, "source": "general", "split": "validation", "loss": 2.31}'


@dataclass(frozen=True)
class Loss:
    """One measurement."""

    step: int
    tokens: int  # trained so far
    source: str | None  # None: the whole
    split: str  # validation | train
    loss: float  # nats per trained token


Curves = Mapping[tuple[str | None, str], tuple[Loss, ...]]  # (source, split) -> by step


def loss_line(loss: Loss) -> str:
    """One line of the file, with its end."""
    return json.dumps({name: getattr(loss, name) for name in _FIELDS}, ensure_ascii=False) + "\n"


def read_losses(path: Path) -> Curves:
    """The measurements of a file by source and split, in the order of steps.

    A last line without its end is one that a stopped run was writing, and is left out. Raises RecipeError for a file that
    cannot be read, a line that is no measurement, or a file without any.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as losses: {error}. Name a losses.jsonl.") from None
    lines = text.split("\n")
    last: dict[tuple[str | None, str], dict[int, Loss]] = {}
    for number, line in enumerate(lines[:-1], 1):
        if line.strip():
            loss = _parsed(line, f"{path}, line {number}")
            last.setdefault((loss.source, loss.split), {})[loss.step] = loss
    if lines[-1].strip():
        try:
            loss = _parsed(lines[-1], str(path))
            last.setdefault((loss.source, loss.split), {})[loss.step] = loss
        except RecipeError:
            pass  # cut off by a kill
    if not last:
        raise RecipeError(f"{path} holds no losses. A line of it looks like {_EXAMPLE}.")
    return {key: tuple(steps[step] for step in sorted(steps)) for key, steps in last.items()}


def _parsed(line: str, where: str) -> Loss:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise RecipeError(f"{where} is not JSON ({error}). A line looks like {_EXAMPLE}.") from None
    missing = [name for name in _FIELDS if not isinstance(value, dict) or name not in value]
    if missing:
        raise RecipeError(f"{where} has no {', '.join(missing)}. A line looks like {_EXAMPLE}.")
    if problem := _problem(value):
        raise RecipeError(f"{where}: {problem}. A line looks like {_EXAMPLE}.")
    return Loss(value["step"], value["tokens"], value["source"], value["split"], float(value["loss"]))


def _problem(value: dict[str, Any]) -> str | None:
    """What is wrong with the values of a line."""
    for name in ("step", "tokens"):
        if type(value[name]) is not int or value[name] < 0:
            return f"{name} is {value[name]!r}, and a whole number from 0 on is needed"
    if value["source"] is not None and not isinstance(value["source"], str):
        return f"source is {value['source']!r}, and a name or null is needed"
    if value["split"] not in SPLITS:
        return f"split is {value['split']!r}, and validation or train is needed"
    loss = value["loss"]
    if isinstance(loss, bool) or not isinstance(loss, int | float) or not math.isfinite(loss):
        return (
            f"loss is {loss!r}, and a finite number is needed: the run has diverged, or wrote something else"
        )
    return None
