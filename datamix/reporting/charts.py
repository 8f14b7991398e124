"""The parts of the report page as values; drawings as numbers: bars as parts of a track, curves as paths in a square of 1,000.

The page draws bars with its own boxes, and stretches a curve's square to the width there is; names, ticks and marks are text
of the page at a percentage of the square. So text never shrinks with a drawing, long names wrap, colours are the page's,
and the bytes are a function of the numbers alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamix.reporting.decode import DecodedDocument

MAX_SERIES = 7  # lines of one colour each; sources beyond them are drawn as one
OTHERS = MAX_SERIES + 1
FATE_COLOURS = {"used": 1, "unused": 8, "validation": 2, "dropped": 5, "removed": 4, "cleaned": 3, "rejected": 6}  # fmt: skip
_SIDE = 1000  # of the square that curves are drawn in
_MAX_TICKS = 5

Tick = tuple[float, str]  # percent of the axis, label


@dataclass(frozen=True)
class Cell:
    """One track of a row of bars."""

    text: str
    parts: Sequence[tuple[int, float]]  # colour of the page's series, percent of the track
    tick: float | None = None  # percent of the track


@dataclass(frozen=True)
class BarRow:
    name: str
    cells: Sequence[Cell]
    depth: int = 0  # 1: a member of the group above


@dataclass(frozen=True)
class Bars:
    """Rows of bars, a column a quantity; the first column is the one that matters most."""

    title: str
    head: Sequence[str]
    rows: Sequence[BarRow]


@dataclass(frozen=True)
class Curve:
    path: str
    colour: int  # of the page's series
    style: str = "line"  # line | asked | area


@dataclass(frozen=True)
class Plot:
    """Curves over two named axes, with marks at places on either."""

    title: str
    x_name: str
    y_name: str
    curves: Sequence[Curve]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    x_marks: Sequence[Tick] = ()
    y_marks: Sequence[Tick] = ()


@dataclass(frozen=True)
class Table:
    """A table; groups come before their members."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    foot: Sequence[str] = ()
    depths: Sequence[int] = ()  # of rows: 1 is a member of the group above
    words: Sequence[int] = (0,)  # columns of words, flush left


@dataclass(frozen=True)
class Legend:
    """A colour and what it stands for."""

    name: str
    colour: int  # of the page's series, from 1


@dataclass(frozen=True)
class Example:
    """An emitted row as the page shows it."""

    title: str
    documents: Sequence[DecodedDocument]
    more: str = ""
    open: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page with a title: words, drawings, tables, rows, commands."""

    id: str
    title: str
    lead: str = ""
    legend: Sequence[Legend] = ()
    bars: Sequence[Bars] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()
    rows: Sequence[Example] = ()
    commands: Sequence[tuple[str, str]] = ()  # where, command


def short_number(value: float) -> str:
    """12000 -> 12K, in three digits."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def percent_text(share: float) -> str:
    """0.25 -> 25 %."""
    return f"{share * 100:.3g} %"


def round_ticks(top: float, label: Callable[[float], str]) -> list[Tick]:
    """At most five round values from 0 to ``top``, as ticks of an axis that ends there."""
    if top <= 0:
        return [(0.0, label(0.0))]
    power = 10.0 ** math.floor(math.log10(top / _MAX_TICKS))
    step = next(power * n for n in (1, 2, 2.5, 5, 10) if top / (power * n) < _MAX_TICKS)
    return [(100 * n * step / top, label(n * step)) for n in range(int(top / step + 1e-9) + 1)]


def range_ticks(low: float, high: float) -> list[Tick]:
    """At most five round values within ``low`` to ``high``, as ticks of an axis from one to the other."""
    power = 10.0 ** math.floor(math.log10((high - low) / _MAX_TICKS))
    step = next(power * n for n in (1, 2, 2.5, 5, 10) if (high - low) / (power * n) < _MAX_TICKS)
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) + (step / 10 ** math.floor(math.log10(step)) == 2.5)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [
        (100 * (n * step - low) / (high - low), f"{n * step + 0.0:.{digits}f}")
        for n in range(first, last + 1)
    ]


def part_ticks() -> list[Tick]:
    """An axis from 0 to the whole."""
    return [(100 * n / 4, percent_text(n / 4)) for n in range(5)]


def path(x: NDArray[Any], y: NDArray[Any], top: float) -> str:
    """A line through points with x in 0..1 and y in 0..top, top left of the square at (0, 0)."""
    across = np.rint(x * _SIDE).astype(int).tolist()
    down = np.rint(_SIDE - y / (top or 1.0) * _SIDE).astype(int).tolist()
    return "M" + "L".join(f"{a} {b}" for a, b in zip(across, down, strict=True))


def columns(heights: NDArray[Any], top: float) -> str:
    """Columns of equal width side by side, as one shape."""
    width = _SIDE / len(heights)
    shapes = []
    for number, height in enumerate(heights.tolist()):
        if height:
            tall = round(height / top * _SIDE)
            left, wide = round((number + 0.07) * width), round(0.86 * width)
            shapes.append(f"M{left} {_SIDE}v-{tall}h{wide}v{tall}z")
    return "".join(shapes)


def length_plot(
    titles: tuple[str, str, str],
    lengths: NDArray[Any],
    edges: NDArray[np.float64],
    limit: tuple[int, str] | None,
) -> Plot:
    """How long records are ``[num_lines, num_bins]``, in tokens on a logarithmic axis, as a share of each line's records.

    ``titles``: of the drawing and its axes; ``limit``: tokens, and the name of the mark there.
    """
    filled = np.flatnonzero(lengths.sum(axis=0))
    first, last = max(0, int(filled[0]) - 1), min(lengths.shape[1], int(filled[-1]) + 2)
    low, high = (math.log2(max(edge, 0.5)) for edge in (edges[first], edges[last]))
    if limit:
        high = max(high, math.log2(limit[0]))

    def place(tokens: NDArray[Any] | float) -> Any:
        return (np.log2(tokens) - low) / (high - low)

    middle = np.sqrt(np.maximum(edges[first:last], 0.5) * edges[first + 1 : last + 1])
    shares = lengths[:, first:last] / np.maximum(1, lengths.sum(axis=1, keepdims=True))
    top = 1.08 * float(shares.max())
    powers = [2**n for n in range(math.ceil(low), math.floor(high) + 1)]
    step = -(-len(powers) // _MAX_TICKS)
    return Plot(
        *titles,
        curves=[Curve(path(place(middle), line, top), n + 1) for n, line in enumerate(shares)],
        x_ticks=[
            (100 * float(place(p)), f"{p:,}" if p < 10_000 else f"{p // 1024}K") for p in powers[::step]
        ],
        y_ticks=round_ticks(top, percent_text),
        x_marks=[(100 * float(place(limit[0])), limit[1])] if limit else (),
    )
