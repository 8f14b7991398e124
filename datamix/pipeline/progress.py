"""What a person sees while a build runs: one bar a phase on a terminal, one line a phase in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from datamix.core.contracts import Engine, Receipt, Task

_LINE_SECONDS = 30.0
_IN_BYTES = ("scan", "prepare", "lines", "encode", "sign")  # phases whose work is counted in bytes of input
_IN_ROWS = ("write",)


class Watch(Protocol):
    """Told how far a phase is."""

    def advance(self, weight: int, label: str) -> None: ...


class Screen:
    """Shows phases; ``quiet`` shows nothing. Says what was found done as well as what is done now."""

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.quiet = quiet

    def say(self, text: str) -> None:
        """One line of news."""
        if not self.quiet:
            self.console.print(text)

    @contextmanager
    def phase(self, title: str, total: int) -> Iterator[Watch]:
        """Show one phase of ``total`` units of work."""
        if self.quiet:
            yield _Silent()
        elif self.console.is_terminal:
            columns = [
                SpinnerColumn(),
                TextColumn(f"{title:<9}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}% {task.fields[rate]:>12}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            ]
            with Progress(*columns, console=self.console) as bars:
                yield _Bar(bars, bars.add_task(title, total=max(1, total), rate=""), title)
        else:
            lines = _Lines(self.console, title, total)
            yield lines
            lines.end()


class _Silent:
    def advance(self, weight: int, label: str) -> None:
        pass


class _Bar:
    def __init__(self, bars: Progress, task: object, title: str) -> None:
        self._bars, self._task, self._title = bars, task, title
        self._start, self._done = time.monotonic(), 0

    def advance(self, weight: int, label: str) -> None:
        self._done += weight
        rate = self._done / max(1e-3, time.monotonic() - self._start)
        said = f"{short_bytes(rate)}/s" if self._title in _IN_BYTES else ""
        said = f"{short_count(rate)} rows/s" if self._title in _IN_ROWS else said
        self._bars.update(self._task, advance=weight, rate=said)  # type: ignore[arg-type]


class _Lines:
    """Plain lines for logs: one when a phase ends, and one each half minute of a long one."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        self._console, self._title, self._total = console, title, max(1, total)
        self._done, self._start = 0, time.monotonic()
        self._said = self._start

    def advance(self, weight: int, label: str) -> None:
        self._done += weight
        now = time.monotonic()
        if now - self._said >= _LINE_SECONDS:
            self._said = now
            self._console.print(
                f"{self._title:<9} {self._done / self._total:4.0%} after {now - self._start:.0f} s ({label})"
            )

    def end(self) -> None:
        self._console.print(f"{self._title:<9} done in {time.monotonic() - self._start:.1f} s")


def run_tasks(engine: Engine, screen: Screen, title: str, tasks: Sequence[Task]) -> list[Receipt]:
    """Run tasks under one phase's bar; receipts in task order."""
    if not tasks:
        return []
    receipts: list[Receipt | None] = [None] * len(tasks)
    with screen.phase(title, sum(t.weight for t in tasks)) as watch:
        for index, receipt in engine.run(tasks):
            receipts[index] = receipt
            watch.advance(tasks[index].weight, tasks[index].label)
    finished = [r for r in receipts if r is not None]
    if damaged := sum(r.replaced_damage for r in finished):
        screen.say(f"{damaged:,} damaged results in the cache were thrown away and made again.")
    return finished


def short_bytes(size: float) -> str:
    """1_500_000 -> '1.5 MB'."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return ""


def short_count(value: float) -> str:
    """1_500_000 -> '1.50M'; small numbers in full."""
    for limit, suffix in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            scale = 1e3 if suffix == "k" else limit
            return f"{value / scale:.3g}{suffix}" if suffix == "k" else f"{value / scale:.2f}{suffix}"
    return f"{value:,.0f}"
