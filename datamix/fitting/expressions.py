"""The expressions of ``datamix recommend``: ``--target NAME=W,...`` and ``--keep 'NAME <= base + 0.01'``.

Names may hold anything, ``:``, ``=``, ``,`` and ``<=`` included: what could be read in two ways is read as the names there are.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from datamix.core.errors import RecipeError, nearest
from datamix.fitting.laws import Floats
from datamix.fitting.recommendation import Keep

_LIMIT = re.compile(
    r"(?P<base>base)?\s*(?:(?P<sign>[-+*])?\s*(?P<number>\d*\.?\d+(?:[eE][-+]?\d+)?)\s*(?P<percent>%)?)?"
)


def target_amounts(text: str | None, targets: Sequence[str], losses: Floats) -> Floats:
    """The weight of every target ``[num_targets]``; without ``text`` the mean of those that have losses.

    Raises RecipeError: no such target, one without losses, a weight that is no number above 0.
    """
    seen: NDArray[np.bool_] = np.asarray(np.isfinite(losses).any(axis=0))
    if text is None:
        return np.asarray(seen / seen.sum(), np.float64)
    amounts = np.zeros(len(targets))
    for name, amount in _parts(text, targets):
        index = _index(name, targets, f"--target {text}")
        if not seen[index]:
            raise RecipeError(
                f"--target {text}: no run has a loss of {name}. Fill its column, or choose another target."
            )
        amounts[index] += amount
    return amounts


def _parts(text: str, targets: Sequence[str]) -> list[tuple[str, float]]:
    """``a=2,b`` -> ``[("a", 2), ("b", 1)]``; a name that is a target as a whole is not split."""
    parts: list[tuple[str, float]] = []
    pieces, start = text.split(","), 0
    while start < len(pieces):
        for end in range(len(pieces), start, -1):  # the longest piece that names a target
            piece = ",".join(pieces[start:end]).strip()
            name, equals, number = piece.rpartition("=")
            if piece in targets:
                parts.append((piece, 1.0))
            elif equals and name.strip() in targets and (end == start + 1 or "," not in number):
                parts.append((name.strip(), _amount(number, text)))
            elif end > start + 1:
                continue
            else:
                parts.append((name.strip() if equals else piece, 1.0))  # no target: the caller says so
            start = end
            break
    return parts


def _amount(number: str, text: str) -> float:
    try:
        amount = float(number)
    except ValueError:
        amount = math.nan
    if not (math.isfinite(amount) and amount > 0):
        raise RecipeError(
            f"--target {text}: the weight {number.strip()!r} should be a number above 0, as in general=2,medical=1."
        )
    return amount


def _index(name: str, targets: Sequence[str], option: str) -> int:
    if name in targets:
        return targets.index(name)
    close = nearest(name, targets)
    hint = (
        f"did you mean {close}?"
        if close
        else f"there are {', '.join(targets[:8])}{' ...' if len(targets) > 8 else '.'}"
    )
    raise RecipeError(f"{option}: there is no column loss:{name}; {hint}")


def keep_name(text: str, targets: Sequence[str]) -> str:
    """The loss that an expression bounds. Raises RecipeError where it is no bound, or of no loss."""
    name, bound, limit = text.rpartition("<=")
    match = _LIMIT.fullmatch(limit.strip())
    known = match is not None and limit.strip() and (match["base"] or match["sign"] in (None, "+"))
    if (
        not bound
        or not name.strip()
        or not known
        or (match and match["base"] and match["number"] and not match["sign"])
    ):
        raise RecipeError(
            f"--keep {text}: should be 'NAME <= base + 0.01' (also base, base * 1.02, base + 2 % or a number), NAME a column loss:NAME."
        )
    return targets[_index(name.strip(), targets, f"--keep {text}")]


def needs_base(text: str) -> bool:
    """Whether an expression compares with the base."""
    return text.rpartition("<=")[2].strip().startswith("base")


def read_keep(text: str, targets: Sequence[str], base: Floats | None) -> Keep:
    """``NAME <= base + 0.01`` as a bound. Raises RecipeError: no such target, a base without this loss."""
    name = keep_name(text, targets)
    index = targets.index(name)
    match = _LIMIT.fullmatch(text.rpartition("<=")[2].strip())
    assert match is not None
    number = float(match["number"]) if match["number"] else 0.0
    if not match["base"]:
        return Keep(text, index, number)
    assert base is not None
    start = float(base[index])
    if not math.isfinite(start):
        raise RecipeError(
            f"--keep {text}: the base has no loss of {name}. Fill its cell in the row of the base."
        )
    if match["percent"]:
        number *= start / 100
    if match["sign"] == "*":
        return Keep(text, index, start * number)
    return Keep(text, index, start - number if match["sign"] == "-" else start + number)
