"""What a person sees of a build: one bar a phase on a terminal, one line a phase in a log, and notices when it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, Protocol, TextIO

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from datamix.core.contracts import Engine, Receipt, Task
from datamix.core.errors import RecipeError, visible

_LINE_SECONDS = 30.0
_IN_BYTES = ("scan", "prepare", "lines", "encode", "sign")  # phases whose work is counted in bytes of input
_IN_ROWS = ("write",)
UNIT_WORDS = {"records": "records", "tokens": "tokens", "loss_tokens": "loss tokens"}

_DROPPED = {
    "overlong": "longer than encode.max_length, with nothing left to take away",
    "no_loss": "nothing in them is trained",
    "empty": "they have no content",
    "special_text": "they hold the text of a control token (encode.special_text: reject)",
    "template": "the chat template refuses them",
}
_NOTICED = {
    "special_text": "hold the text of a control token",
    "unwritten": "say something that the chat template leaves out",
    "unwritten_tools": "define tools that the chat template leaves out",
}
_MAX_UNUSED = 5  # columns of the ladder


class Watch(Protocol):
    """Follows how far a phase is."""

    def advance(self, weight: int, label: str) -> None: ...


class Screen:
    """Shows phases, cached work included; ``quiet`` shows nothing."""

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.quiet = quiet

    def say(self, text: str) -> None:
        """One line of news."""
        if not self.quiet:
            self.console.print(visible(text), markup=False)

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


_LOG_BEGINS = b'{"seconds": '


class LoggedScreen(Screen):
    """A screen that also writes what it shows to a file, as JSON lines: phases as they begin and end, and messages."""

    def __init__(self, log: TextIO, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self._log, self._start = log, time.monotonic()

    def say(self, text: str) -> None:
        super().say(text)
        self._write({"message": text})

    @contextmanager
    def phase(self, title: str, total: int) -> Iterator[Watch]:
        self._write({"phase": title, "event": "begin", "total": total})
        with super().phase(title, total) as watch:
            yield watch
        self._write({"phase": title, "event": "end", "total": total})

    def _write(self, entry: dict[str, Any]) -> None:
        entry = {"seconds": round(time.monotonic() - self._start, 3), **entry}
        self._log.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._log.flush()


def open_log(path: Path) -> TextIO:
    """Open a log to append to. Raises RecipeError for a file that is no such log: it would be changed."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as stream:
            if stream.read(len(_LOG_BEGINS)) != _LOG_BEGINS:
                raise RecipeError(
                    f"--log: {path} is no log of a build, and is left as it is. Name another file."
                )
    return path.open("a", encoding="utf-8")


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
        text = f"{short_bytes(rate)}/s" if self._title in _IN_BYTES else ""
        text = f"{short_count(rate)} rows/s" if self._title in _IN_ROWS else text
        self._bars.update(self._task, advance=weight, rate=text)  # type: ignore[arg-type]


class _Lines:
    """Plain lines for logs: one when a phase ends, and one each half minute of a long one."""

    def __init__(self, console: Console, title: str, total: int) -> None:
        self._console, self._title, self._total = console, title, max(1, total)
        self._done, self._start = 0, time.monotonic()
        self._printed = self._start

    def advance(self, weight: int, label: str) -> None:
        self._done += weight
        now = time.monotonic()
        if now - self._printed >= _LINE_SECONDS:
            self._printed = now
            self._console.print(
                f"{self._title:<9} {self._done / self._total:4.0%} after {now - self._start:.0f} s ({visible(label)})",
                markup=False,
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


def encode_warnings(manifest: dict[str, Any]) -> list[str]:
    """Why encoding dropped records, and what it noticed: a line for each reason of each source."""
    lines: list[str] = []
    special = manifest["recipe"]["encode"]["special_text"]
    as_what = {"text": ", kept as text", "allow": ", read as control"}.get(special)
    for name, source in manifest["sources"].items():
        noticed = source.get("noticed", {})
        for reason, count in source["dropped_by"].items():
            words = _DROPPED.get(reason, reason)
            if reason == "template":
                texts = [
                    (k.removeprefix("template: "), n)
                    for k, n in noticed.items()
                    if k.startswith("template: ")
                ]
                most = sorted(texts, key=lambda pair: (-pair[1], pair[0]))
                words += ": " + "; ".join(f"{text} ({n:,})" for text, n in most[:3])
                words += f"; and {len(most) - 3} other messages" if len(most) > 3 else ""
            lines.append(f"Dropped: {count:,} records of {name}: {words}.")
        for reason, count in noticed.items():
            is_special = reason == "special_text"
            if reason in _NOTICED and not (is_special and special == "reject"):
                lines.append(
                    f"Note: {count:,} records of {name} {_NOTICED[reason]}{as_what if is_special else ''}."
                )
    return lines


def scarcity_text(scarcity: dict[str, Any], unit: str, about: str = "") -> str:
    """Which sources set the size, and what more epochs of them would give."""
    scarce, rungs = scarcity["scarce"], scarcity["ladder"]
    most = sorted(
        ((share, name) for name, share in rungs[0]["unused"].items() if share >= 0.005), reverse=True
    )
    idle = [name for name in rungs[0]["unused"] if name in [n for _, n in most[:_MAX_UNUSED]]]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("max_epochs", "size", "epochs", *(f"unused {name}" for name in idle)):
        table.add_column(name, justify="right")
    for rung in rungs:
        table.add_row(
            str(rung["max_epochs"]),
            about + short_count(rung["total"]),
            f"{max(rung['epochs'][name] for name in scarce):.2f}",
            *(f"{rung['unused'][name]:.0%}" for name in idle),
        )
    names = f"{scarce[0]} sets" if len(scarce) == 1 else f"{', '.join(scarce[:-1])} and {scarce[-1]} set"
    whose = "its max_epochs" if len(scarce) == 1 else "max_epochs of all of them"
    return (
        f"Scarce: {names} the size and would leave more than half of another source unused. With {whose} raised, "
        f"in {UNIT_WORDS[unit]}:\n{table_text(table)}"
    )


def table_text(table: Table) -> str:
    """A table as plain text, 160 columns at most."""
    buffer = StringIO()
    Console(file=buffer, width=160, highlight=False, markup=False, emoji=False).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()).strip("\n")
