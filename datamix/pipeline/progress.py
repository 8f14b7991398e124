"""What a person sees of a build: one bar a phase on a terminal, one line a phase in a log, and notices when it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, Protocol, TextIO

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Task as RichTask
from rich.table import Table
from rich.text import Text

from datamix.core.contracts import Engine, Receipt, Task
from datamix.core.errors import RecipeError, visible
from datamix.pipeline.time_left import TimeLeft

_LINE_SECONDS = 30.0
_AGAIN_SECONDS = 0.5  # a phase that comes again has a line where it takes longer
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
        self.time_left: TimeLeft | None = None  # of the build that is running
        self._bars: Progress | None = None  # its bar, on a terminal
        self._shown: set[str] = set()  # phases that a log has its line of

    @contextmanager
    def whole_build(self, titles: Sequence[str], num_workers: int) -> Iterator[None]:
        """Show the phases as parts of one build, with the time that is left of it."""
        self.time_left = TimeLeft(titles, num_workers)
        try:
            if self.quiet or not self.console.is_terminal:
                yield
                return
            with Progress(*_columns(_LeftColumn(self.time_left)), console=self.console) as self._bars:
                self._bars.add_task("", total=1, rate="")
                yield
        finally:
            self.time_left = self._bars = None

    @property
    def num_workers(self) -> int:
        """Workers of the build that is running."""
        return 1 if self.time_left is None else self.time_left.num_workers

    def expect(self, seconds: Mapping[str, float]) -> None:
        """How long phases should take by usual rates; what was measured corrects it."""
        if self.time_left is not None:
            self.time_left.expect(seconds)

    def left_text(self) -> str:
        """``about 40 s left``, or nothing while too little is known."""
        left = None if self.time_left is None else self.time_left.left(time.monotonic())
        return "" if left is None else f"about {duration(left)} left"

    def _name(self, title: str) -> str:
        """``3/9 encode`` of a build, else the title."""
        number = None if self.time_left is None else self.time_left.number(title)
        return (
            title
            if number is None or self.time_left is None
            else f"{number}/{len(self.time_left.titles)} {title}"
        )

    def say(self, text: str) -> None:
        """One line of news."""
        if not self.quiet:
            self.console.print(visible(text), markup=False)

    @contextmanager
    def phase(self, title: str, total: int) -> Iterator[Watch]:
        """Show one phase of ``total`` units of work."""
        if self.quiet:
            yield _Silent()
        elif self._bars is not None:
            [task] = self._bars.task_ids
            self._bars.update(task, description=self._name(title), total=max(1, total), completed=0, rate="")
            yield _Bar(self._bars, task, title)
        elif self.console.is_terminal:
            with Progress(*_columns(TimeRemainingColumn()), console=self.console) as bars:
                yield _Bar(bars, bars.add_task(title, total=max(1, total), rate=""), title)
        else:
            lines = _Lines(self, title, total)
            yield lines
            lines.end(is_new=title not in self._shown)
            self._shown.add(title)


def _columns(left: ProgressColumn) -> list[ProgressColumn]:
    """The parts of a bar, ``left`` the time that is left."""
    return [
        SpinnerColumn(),
        TextColumn("{task.description:<14}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% {task.fields[rate]:>12}"),
        TimeElapsedColumn(),
        left,
    ]


class _LeftColumn(ProgressColumn):
    """The time that is left of the whole build."""

    def __init__(self, time_left: TimeLeft) -> None:
        super().__init__()
        self._time_left = time_left

    def render(self, task: RichTask) -> Text:
        left = self._time_left.left(time.monotonic())
        return Text("" if left is None else f"{duration(left)} left", style="progress.remaining")


def duration(seconds: float) -> str:
    """``95.0`` -> ``1 min 35 s``."""
    whole = max(0, round(seconds))
    if whole < 90:
        return f"{whole} s"
    if whole < 5400:
        return f"{whole // 60} min {whole % 60} s" if whole < 600 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


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
        left = None if self.time_left is None else self.time_left.left(time.monotonic())
        self._write(
            {"phase": title, "event": "end", "total": total}
            | ({} if left is None else {"left": round(left, 1)})
        )

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
    """Plain lines for logs: one when a phase ends, and one each half minute of a long one; none for one that is found done again."""

    def __init__(self, screen: Screen, title: str, total: int) -> None:
        self._screen, self._name, self._total = screen, f"{screen._name(title):<14}", max(1, total)
        self._done, self._start = 0, time.monotonic()
        self._printed = self._start

    def advance(self, weight: int, label: str) -> None:
        self._done += weight
        now = time.monotonic()
        if now - self._printed >= _LINE_SECONDS:
            self._printed = now
            self._print(
                f"{self._name} {self._done / self._total:4.0%} after {now - self._start:.0f} s ({visible(label)})"
            )

    def end(self, is_new: bool) -> None:
        seconds = time.monotonic() - self._start
        if is_new or seconds >= _AGAIN_SECONDS:
            self._print(f"{self._name} done in {seconds:.1f} s")

    def _print(self, text: str) -> None:
        left = self._screen.left_text()
        self._screen.console.print(f"{text}, {left}" if left else text, markup=False)


def run_tasks(engine: Engine, screen: Screen, title: str, tasks: Sequence[Task]) -> list[Receipt]:
    """Run tasks under one phase's bar; receipts in task order."""
    if not tasks:
        return []
    receipts: list[Receipt | None] = [None] * len(tasks)
    total, left = sum(t.weight for t in tasks), screen.time_left
    if left is not None:
        left.begin(title, total, time.monotonic())
    with screen.phase(title, total) as watch:
        for index, receipt in engine.run(tasks):
            receipts[index] = receipt
            if left is not None and receipt.was_found:
                left.skip(tasks[index].weight)
            elif left is not None:
                left.advance(tasks[index].weight, time.monotonic())
            watch.advance(tasks[index].weight, tasks[index].label)
        if left is not None:
            left.end(time.monotonic())
    finished = [r for r in receipts if r is not None]
    say_damaged(screen, finished)
    return finished


def say_damaged(screen: Screen, receipts: Sequence[Receipt]) -> None:
    """Count the results that were damaged in the cache."""
    if damaged := sum(r.replaced_damage for r in receipts):
        screen.say(f"{damaged:,} damaged results in the cache were thrown away and made again.")


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


def table_text(table: Table, width: int = 160) -> str:
    """A table as plain text, ``width`` columns at most."""
    buffer = StringIO()
    Console(file=buffer, width=width, highlight=False, markup=False, emoji=False).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()).strip("\n")
