"""How long a build still takes, phase by phase.

Each phase has a time that it should take, from the bytes it has to do and a usual rate. Two corrections make it true of this machine and
these data: how much slower than usual the phases before it were, and, while it runs, what it took so far, weighed by how much of it is
done. Work that the cache holds counts for nothing, so a resumed build is told as what is left of it. Costs nothing: a few numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_TRUST = 0.08  # the part of a phase that weighs as much as its usual rate
_MOSTLY_START = ("sample", "pack")  # a first task says little of the others
_OF_TOKENIZER = ("sample", "encode")  # how fast these are says little of the machine
_STEADY_SECONDS = 0.4  # of usual work, before phases that are over say how fast this machine is

# Seconds that work usually takes, on one core; what was measured in a build corrects them.
_PER_TEXT_BYTE = {
    "prepare": 1 / 75e6,
    "lines": 1 / 60e6,
    "encode": 1 / 12e6,
    "truncate": 1 / 400e6,
    "sign": 1 / 300e6,
    "write": 1 / 150e6,
}
_PER_BYTE_ALONE = {"select": 1 / 2e9, "pack": 1 / 2e9, "order": 1 / 2e9, "report": 1 / 1e9}
_LARGE_BYTES, _LARGE_ENCODE = 64 << 20, 1 / 90e6  # from here on the faster tokenizer engine is loaded
_START = {"prepare": 0.2, "encode": 0.3, "sample": 3.3, "pack": 0.8, "report": 0.1}


@dataclass
class _Phase:
    """One phase: when it began, and its work in weights of tasks."""

    title: str
    begin: float
    total: int
    cached: int = 0
    done: int = 0
    tasks: int = 0  # done
    last: float = 0.0  # when the last task ended

    @property
    def fresh(self) -> int:
        """Work that the cache does not hold."""
        return self.total - self.cached


class TimeLeft:
    """The phases of one build in order, and what is left of them. Times are seconds of one clock."""

    def __init__(self, titles: Sequence[str], num_workers: int = 1) -> None:
        self.titles = tuple(titles)
        self.num_workers = max(1, num_workers)
        self._expected: dict[str, float] = {}
        self._ended: dict[str, float] = {}  # how long phases took that had something to do
        self._usual: dict[str, float] = {}  # and should have taken
        self._phase: _Phase | None = None

    def expect(self, seconds: Mapping[str, float]) -> None:
        """How long phases should take by their usual rates, from what is known now."""
        self._expected |= seconds

    def number(self, title: str) -> int | None:
        """The place of a phase among all, from 1; None for one that is no part of them."""
        return self.titles.index(title) + 1 if title in self.titles else None

    def begin(self, title: str, total: int, now: float) -> None:
        self._phase = _Phase(title, now, total, last=now)

    def skip(self, weight: int) -> None:
        """A task was found in the cache."""
        if self._phase is not None:
            self._phase.cached += weight

    def advance(self, weight: int, now: float) -> None:
        """A task ended."""
        if self._phase is not None:
            self._phase.done += weight
            self._phase.tasks += 1
            self._phase.last = now

    def end(self, now: float) -> None:
        phase, self._phase = self._phase, None
        if phase is None:
            return
        usual = self._usual_of(phase)
        if phase.tasks and usual:
            self._ended[phase.title] = self._ended.get(phase.title, 0.0) + now - phase.begin
            self._usual[phase.title] = self._usual.get(phase.title, 0.0) + usual
        self._expected[phase.title] = 0.0

    def left(self, now: float) -> float | None:
        """Seconds to the end of the build; None while too little is known."""
        if not self._expected:
            return None
        phase, current = self._phase, 0.0
        took, usual = dict(self._ended), dict(self._usual)
        share = 0.0 if phase is None else self._share(phase)
        if phase is not None and phase.tasks:
            took[phase.title] = took.get(phase.title, 0.0) + phase.last - phase.begin
            usual[phase.title] = usual.get(phase.title, 0.0) + share * self._usual_of(phase)
        if any(usual[title] for title in usual if title not in _OF_TOKENIZER):
            took, usual = ({t: s for t, s in d.items() if t not in _OF_TOKENIZER} for d in (took, usual))
        pace = (sum(took.values()) + _STEADY_SECONDS) / (sum(usual.values()) + _STEADY_SECONDS)
        if phase is not None and phase.fresh:
            current = max(0.0, self._whole(phase, share, pace) - (now - phase.begin))
        titles = [t for t in self.titles if phase is None or t != phase.title]
        return current + pace * sum(self._expected.get(title, 0.0) for title in titles)

    def _usual_of(self, phase: _Phase) -> float:
        return self._expected.get(phase.title, 0.0) * phase.fresh / max(1, phase.total)

    def _share(self, phase: _Phase) -> float:
        """How much of a phase is done; of what other workers have in hand half, on the average."""
        in_hand = (self.num_workers - 1) / 2 * phase.done / max(1, phase.tasks)
        return min(1.0, (phase.done + in_hand) / max(1, phase.fresh))

    def _whole(self, phase: _Phase, share: float, pace: float) -> float:
        """How long a phase takes in all: by its usual rate, and by what it took so far."""
        usual, took = self._usual_of(phase) * pace, phase.last - phase.begin
        if not phase.tasks:
            return usual
        start = min(
            took, pace * _START.get(phase.title, 0.0)
        )  # of workers and tokenizers, before the first task
        trust = 1.0 if phase.title in _MOSTLY_START else _TRUST
        return start + (took - start + trust * max(0.0, usual - start)) / (share + trust)


PHASES = ("scan", "prepare", "lines", "sign", "sample", "encode", "truncate", "select", "pack", "order", "write", "report")  # fmt: skip


def usual_seconds(
    text_bytes: float, titles: Sequence[str], num_workers: int, formats: int
) -> dict[str, float]:
    """How long the phases after the scan take by usual rates. ``formats``: how often rows are written."""
    seconds: dict[str, float] = {}
    for title in titles:
        shared = _PER_TEXT_BYTE.get(title, 0.0)
        if title == "encode" and text_bytes >= _LARGE_BYTES:
            shared = _LARGE_ENCODE
        per_byte = shared / max(1, num_workers) + _PER_BYTE_ALONE.get(title, 0.0)
        times = formats if title == "write" else 1
        seconds[title] = _START.get(title, 0.0) + text_bytes * per_byte * times
    seconds["scan"] = 0.0
    return seconds
