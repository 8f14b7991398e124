"""How many requests are in flight: as many as make the host faster, and no more.

The limit doubles as long as more requests in flight give more tokens a second (``GAIN``), or wait no longer than few do; when two rounds
bring only longer waiting, the host is busy, and half as many again as it can work on keep its queue filled. From time to time a little more is tried. A host that says it
is busy (429, 503) gets a quarter less and then one more a round; ``Retry-After`` stops all sending for so long.

Cost: nothing; a round is as many answers as are in flight.
"""

from __future__ import annotations

from dataclasses import dataclass, field

START = 8
CEILING = 1024
GAIN = 1.15
_RESERVE = 1.5  # requests that wait at the host for each that it works on
_SLOWER = 1.25  # times the fastest median latency: below it the host is not busy yet
_MOST_WAIT = 32  # rounds between two tries with more in flight; the first comes after four
_MIN_ROUND = 16  # answers


@dataclass
class Pace:
    """The limit of requests in flight, and when the next may be sent; times are of a monotonic clock, in seconds."""

    fixed: int | None = None  # the recipe's number; None: adapt
    limit: float = START
    resume_at: float = 0.0
    _grows: bool = True  # doubling
    _best: tuple[float, float] = (0.0, 0.0)  # most tokens a second; the last limit that gained some
    _round: tuple[float, int, float] = (-1.0, 0, 0.0)  # since, answers, tokens
    _rounds: int = 0
    _wait: int = 4
    _strikes: int = 0  # rounds in a row that gained nothing
    _fastest: float = float("inf")  # median latency of a round
    _latencies: list[float] = field(default_factory=list)
    _cut_at: float = -1.0

    def __post_init__(self) -> None:
        if self.fixed is not None:
            self.limit = float(self.fixed)

    def answered(self, now: float, latency: float, tokens: int) -> None:
        """An answer came; ``tokens`` of work for the host."""
        self._latencies = [*self._latencies[-63:], latency]
        since, answers, total = self._round
        if since < 0:
            self._round = now, 0, 0.0
            return
        self._round = since, answers + 1, total + tokens
        if self.fixed is None and answers + 1 >= max(_MIN_ROUND, self.limit) and now > since:
            late = sorted(self._latencies[-(answers + 1) // 2 :])  # the first were sent in the round before
            self._end_round((total + tokens) / (now - since), late[len(late) // 2])
            self._round = now, 0, 0.0

    def refused(self, now: float, retry_after: float | None) -> None:
        """The host is busy, or broke down."""
        if retry_after is not None:
            self.resume_at = max(self.resume_at, now + retry_after)
        if self.fixed is None and now >= self._cut_at + self.usual_latency():
            self.limit, self._grows = max(1.0, self.limit * 0.75), False
            self._best, self._cut_at, self._round = (0.0, 0.0), now, (-1.0, 0, 0.0)

    def usual_latency(self) -> float:
        """The median of the last answers, in seconds; 1 before there are any."""
        ordered = sorted(self._latencies)
        return ordered[len(ordered) // 2] if ordered else 1.0

    def _end_round(self, rate: float, latency: float) -> None:
        self._fastest = min(self._fastest, latency)
        best, at = self._best
        has_gained = rate > best * GAIN
        self._best = max(rate, best), self.limit if has_gained else at
        if self._grows:
            if has_gained or latency < self._fastest * _SLOWER:
                self._strikes = 0
            else:
                self._strikes += 1
            if self._strikes < 2:
                self.limit = min(CEILING, self.limit * 2) if not self._strikes else self.limit
            else:
                self.limit, self._grows, self._rounds = min(CEILING, at * _RESERVE), False, 0
            return
        self._rounds += 1
        if best == 0.0:  # after a refusal
            self.limit = min(CEILING, self.limit + 1)
        elif self._rounds == self._wait:
            self.limit = min(CEILING, self.limit * 1.25)
        elif self._rounds == self._wait + 2:  # the round after the first at the higher limit
            if not has_gained and latency > self._fastest * _SLOWER:
                self.limit = max(1.0, self.limit / 1.25)
            self._rounds, self._wait = 0, min(_MOST_WAIT, self._wait * 2)
