"""The report's drawings: matplotlib figures as SVG that takes its colours and fonts from the page.

Figures are drawn with stand-in colours, each of which is then named as a CSS variable, so one drawing serves light and
dark pages. Text stays text. Bytes are a function of the numbers alone: no date, fixed ids, fixed axes, no fonts measured.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH = 980  # CSS pixels; figures are drawn at this size and shrink with the page
_LEFT = 130  # where names end and bars begin
MAX_SERIES = 7  # lines of one colour each; sources beyond them are drawn as one

# Stand-in -> what the page calls it.
_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--soft)",
    "#030303": "var(--line)",
    "#040404": "var(--accent)",
    "#050505": "var(--faint)",
    "#060606": "var(--page)",
    **{f"#0a0a{n:02x}": f"var(--s{n})" for n in range(1, MAX_SERIES + 2)},
}
INK, SOFT, LINE, ACCENT, FAINT, PAGE = list(_COLOURS)[:6]
FATE_COLOURS = {
    "used": 1,
    "unused": 8,
    "validation": 2,
    "dropped": 5,
    "removed": 4,
    "cleaned": 3,
    "rejected": 6,
}
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "grid.color": LINE,
    "grid.linewidth": 1,
    "lines.solid_capstyle": "butt",
    "text.parse_math": False,
}


@dataclass(frozen=True)
class Bar:
    """One source in a chart of bars."""

    name: str
    values: tuple[float, ...]


def series(index: int) -> str:
    """The stand-in of the n-th series, from 0; those past the palette share its last colour."""
    return f"#0a0a{min(index, MAX_SERIES) + 1:02x}"


def share_bars(bars: Sequence[Bar], asked: Sequence[float], units: Sequence[str], unit: str) -> str:
    """Reached shares side by side, a panel a unit, with a tick where the recipe asked."""
    height = 58 + 30 * len(bars)
    with _Drawing("shares", height) as drawing:
        top = max([*asked, *(v for bar in bars for v in bar.values)])
        for column, name in enumerate(units):
            axes = drawing.axes(_LEFT + column * 285, 34, 235, 30 * len(bars))
            rows = np.arange(len(bars))
            is_unit = name == unit
            axes.barh(rows, [bar.values[column] for bar in bars], 0.62, color=ACCENT if is_unit else FAINT)
            if is_unit:
                axes.vlines(asked, rows - 0.44, rows + 0.44, color=INK, linewidth=2)
            for row, bar in enumerate(bars):
                end = max(bar.values[column], asked[row]) if is_unit else bar.values[column]
                weight = "bold" if is_unit else "normal"
                axes.text(
                    end + 0.02 * top,
                    row,
                    _percent(bar.values[column], 2),
                    va="center",
                    fontsize=12,
                    weight=weight,
                )
            axes.set_xlim(0, top * 1.22)
            axes.set_ylim(len(bars) - 0.4, -0.6)
            axes.set_xticks([])
            axes.tick_params(length=0, labelcolor=INK)
            _name_rows(axes, [bar.name for bar in bars] if column == 0 else [""] * len(bars))
            axes.spines["bottom"].set_visible(False)
            title = name.replace("_", " ") + (" (asked in this unit)" if is_unit else "")
            axes.set_title(title, loc="left", fontsize=12, color=INK if is_unit else SOFT, pad=8)
        return drawing.svg()


def fate_bars(bars: Sequence[Bar], fates: Sequence[str]) -> str:
    """What became of every record read: one bar a source, one length a fate."""
    height = 44 + 30 * len(bars)
    with _Drawing("fates", height) as drawing:
        axes = drawing.axes(_LEFT, 8, WIDTH - _LEFT - 70, 30 * len(bars))
        rows = np.arange(len(bars))
        left = np.zeros(len(bars))
        for column, fate in enumerate(fates):
            width = np.array([bar.values[column] for bar in bars])
            axes.barh(
                rows,
                width,
                0.62,
                left=left,
                color=series(FATE_COLOURS[fate] - 1),
                edgecolor=PAGE,
                linewidth=1,
            )
            left += width
        for row, total in enumerate(left):
            axes.text(total + 0.01 * left.max(), row, f"{int(total):,}", va="center", fontsize=12)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_xlim(0, left.max() * 1.01)
        axes.tick_params(length=0, labelcolor=INK)
        axes.tick_params(axis="x", labelcolor=SOFT, pad=6)
        _name_rows(axes, [bar.name for bar in bars])
        axes.xaxis.set_major_formatter(lambda x, _: _short(x))
        axes.spines["bottom"].set_visible(False)
        axes.spines["left"].set_visible(False)
        return drawing.svg()


def duplicate_matrix(names: Sequence[str], keepers: Sequence[str], counts: NDArray[np.int64]) -> str:
    """How many records of each source (row) went because a record of another (column) was kept."""
    from matplotlib.patches import Rectangle

    cell_width, cell = max(76, min(120, 700 // len(keepers))), 38
    with _Drawing("duplicates", 40 + cell * len(names), _LEFT + 10 + cell_width * len(keepers)) as drawing:
        axes = drawing.axes(_LEFT, 34, cell_width * len(keepers), cell * len(names))
        for (row, column), count in np.ndenumerate(counts):
            strength = float(np.sqrt(count / max(1, counts.max())))
            colour, alpha = (ACCENT, 0.12 + 0.6 * strength) if count else (FAINT, 0.35)
            corner = (column + 0.02, row + 0.04)
            axes.add_patch(Rectangle(corner, 0.96, 0.92, facecolor=colour, alpha=alpha, linewidth=0))
            if count:
                axes.text(column + 0.5, row + 0.5, f"{count:,}", ha="center", va="center", fontsize=12)
        axes.set_xlim(0, len(keepers))
        axes.set_ylim(len(names), 0)
        axes.set_xticks(np.arange(len(keepers)) + 0.5, keepers)
        axes.xaxis.tick_top()
        axes.tick_params(length=0, labelcolor=INK)
        _name_rows(axes, names, 0.5)
        for spine in axes.spines.values():
            spine.set_visible(False)
        return drawing.svg()


def length_lines(lengths: NDArray[Any], edges: NDArray[np.float64], limit: int | None) -> str:
    """How long records are, in tokens on a logarithmic axis: one line a source, as a share of its records."""
    used = np.flatnonzero(lengths.sum(axis=0))
    first, last = max(0, int(used[0]) - 1), min(lengths.shape[1], int(used[-1]) + 2)
    with _Drawing("lengths", 250) as drawing:
        axes = drawing.axes(60, 14, WIDTH - 90, 190)
        middle = np.sqrt(np.maximum(edges[first:last], 0.5) * edges[first + 1 : last + 1])
        for index in range(len(lengths)):
            share = lengths[index, first:last] / max(1, lengths[index].sum())
            axes.fill_between(middle, share, color=series(index), alpha=0.08, linewidth=0)
            axes.plot(middle, share, color=series(index), linewidth=1.8)
        axes.set_ylim(0)
        axes.set_xscale("log", base=2)
        if limit:
            axes.axvline(limit, color=SOFT, linewidth=1, linestyle=(0, (3, 3)))
            axes.text(limit, axes.get_ylim()[1], "max_length ", ha="right", va="top", fontsize=11, color=SOFT)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axes.yaxis.set_major_formatter(lambda y, _: _percent(y))
        axes.set_xticks([], minor=True)
        axes.grid(axis="y")
        axes.set_xlabel("tokens a record")
        axes.spines["left"].set_visible(False)
        return drawing.svg()


def fill_bars(fills: NDArray[np.int64]) -> str:
    """How full rows are, as a share of max_length."""
    edges = np.linspace(0, 1, len(fills) + 1)
    with _Drawing("fill", 180) as drawing:
        axes = drawing.axes(60, 10, WIDTH - 90, 124)
        axes.bar(edges[:-1], fills / max(1, fills.sum()), np.diff(edges) * 0.86, align="edge", color=ACCENT)
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(lambda x, _: _percent(x))
        axes.yaxis.set_major_formatter(lambda y, _: _percent(y))
        axes.grid(axis="y")
        axes.set_xlabel("of max_length used, share of rows")
        axes.spines["left"].set_visible(False)
        return drawing.svg()


def share_lines(
    places: NDArray[np.float64],
    shares: NDArray[np.float64],
    asked: NDArray[np.float64],
    stages: Sequence[tuple[str, float]],
) -> str:
    """Share of each source in each window of the training order ``[num_windows, num_sources]``, asked dotted.

    ``stages``: the name of each, and the part of the order at which it begins.
    """
    with _Drawing("order", 270) as drawing:
        axes = drawing.axes(60, 14, WIDTH - 90, 205)
        for index in range(shares.shape[1]):
            axes.plot(places, shares[:, index], color=series(index), linewidth=1.6)
            axes.plot(places, asked[:, index], color=INK, linewidth=1, linestyle=(0, (2, 3)))
        axes.set_xlim(0, 1)
        top = min(1.0, float(max(shares.max(), asked.max())) * 1.12)
        axes.set_ylim(0, top)
        for name, begin in stages if len(stages) > 1 else ():
            axes.axvline(begin, color=LINE, linewidth=1)
            axes.text(begin + 0.006, top, name, ha="left", va="bottom", fontsize=11, color=SOFT)
        _along(axes)
        axes.yaxis.set_major_formatter(lambda y, _: _percent(y))
        return drawing.svg()


def deviation_lines(places: NDArray[np.float64], off: NDArray[np.float64], bound: float) -> str:
    """The farthest that each source is from what it is owed ``[num_windows, num_sources]``, below the bound."""
    with _Drawing("deviation", 200) as drawing:
        axes = drawing.axes(60, 22, WIDTH - 90, 130)
        for index in range(off.shape[1]):
            axes.plot(places, off[:, index], color=series(index), linewidth=1.6)
        axes.axhline(bound, color=INK, linewidth=1)
        axes.text(
            1,
            bound * 1.03,
            f"bound {bound:,.4g}" if bound < 10 else f"bound {bound:,.0f}",
            ha="right",
            va="bottom",
            fontsize=11,
        )
        axes.set_xlim(0, 1)
        axes.set_ylim(0, max(bound, float(off.max())) * 1.04)
        _along(axes)
        axes.yaxis.set_major_formatter(lambda y, _: _short(y))
        return drawing.svg()


def _name_rows(axes: Any, names: Sequence[str], shift: float = 0.0) -> None:
    """Names of rows, flush with the page's left edge."""
    axes.set_yticks(np.arange(len(names)) + shift, [n if len(n) < 20 else n[:17] + "..." for n in names])
    axes.tick_params(axis="y", pad=_LEFT)
    for label in axes.get_yticklabels():
        label.set_horizontalalignment("left")


def _percent(share: float, digits: int = 0) -> str:
    return f"{share * 100:.{digits}f} %"


def _along(axes: Any) -> None:
    axes.xaxis.set_major_formatter(lambda x, _: _percent(x))
    axes.grid(axis="y")
    axes.set_xlabel("of the training order")
    axes.spines["left"].set_visible(False)


def _short(value: float) -> str:
    """12000 -> 12K, in three digits."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


class _Drawing:
    """A figure measured in pixels from its top left, under settings that no file of the user's changes."""

    def __init__(self, name: str, height: int, width: int = WIDTH) -> None:
        self._name, self._width, self._height = name, width, height

    def __enter__(self) -> _Drawing:
        import matplotlib
        from matplotlib.figure import Figure

        self._context = matplotlib.rc_context()
        self._context.__enter__()
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**_SETTINGS, "svg.hashsalt": self._name})
        self._figure = Figure(figsize=(self._width / 72, self._height / 72), facecolor="none")
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(None, None, None)

    def axes(self, left: float, top: float, width: float, height: float) -> Any:
        """Axes whose frame stands at these pixels."""
        size = (self._width, self._height)
        place = (left / size[0], 1 - (top + height) / size[1], width / size[0], height / size[1])
        return self._figure.add_axes(place, facecolor="none")

    def svg(self) -> str:
        """The figure as an element of the page: its colours and font are the page's, and only ids in use stay."""
        sink = io.StringIO()
        self._figure.savefig(sink, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
        svg = sink.getvalue()
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
        referred = set(re.findall(r'#([^")]+)[")]', svg))
        svg = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in referred else "", svg)
        svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", svg)
        for colour, name in _COLOURS.items():
            svg = svg.replace(colour, name)
        opening, end, rest = svg.partition(">")
        opening = re.sub(r' (?:width|height)="[^"]*"', "", opening)
        sizes = f"max-width:{self._width}px;min-width:{min(self._width, 560)}px"
        return f'{opening} style="{sizes}" role="img"{end}{rest}'.rstrip()
