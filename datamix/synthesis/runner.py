"""Run scripts: look answers up, buy those that are missing, and have each on disk before its script goes on.

As many requests are in flight as ``pacing`` allows, each counted from its note on disk to its answer on disk, so that what a kill
can make the next run buy again is never more than that. Scripts start in the order given (by prefix) and those that have begun go
first: a finished record is worth more than two halves. A request that fails is sent again after a pause; one that the host refuses
for good, or that failed ``_ATTEMPTS`` times while others came through, is stored as an error, so that one bad row stops nothing.

Cost: one task and one fsync'ed line more a request than a plain loop over the same client (see ``benchmarks/synth.py``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field

from datamix.core.errors import MachineError
from datamix.synthesis.answer_ledger import Ledger
from datamix.synthesis.budget import Budget, Reservation
from datamix.synthesis.calls import Answer, Call, Draft, Item
from datamix.synthesis.host import CallFailed, Host
from datamix.synthesis.pacing import Pace

_ATTEMPTS = 6
_LONGEST_PAUSE = 30.0  # seconds before a request is sent again
_SCRIPTS = 1.25  # that run for each request in flight: one always waits for a place
_LEAST_TIMEOUT = 120.0  # seconds
_BUSY_SECONDS = 900.0  # without one answer from a host that says it is busy
_HOPELESS = 12  # failures in a row, without one answer between, that end a run
_WATCHED = 50  # of the last requests refused for good, half end a run


class BudgetReached(Exception):
    """Nothing more may be bought."""


@dataclass
class Totals:
    """What this process has done."""

    bought: int = 0
    reused: int = 0
    failed: int = 0  # attempts
    errors: int = 0  # requests given up
    done: dict[str, tuple[int, int, int]] = field(
        default_factory=dict
    )  # index -> requests, prompt, completion


class Runner:
    """Buys the answers of scripts. One process may have one ledger at a time: the caller sees to that."""

    def __init__(
        self,
        ledger: Ledger,
        budget: Budget,
        open_host: Callable[[], Awaitable[Host]],
        model: str,
        pace: Pace,
        progress: Callable[[Totals], None] = lambda totals: None,
        first_pause: float = 0.5,  # seconds, doubled with each attempt
    ) -> None:
        self.ledger, self.budget, self.pace, self.totals = ledger, budget, pace, Totals()
        self._open_host, self._model, self._progress = open_host, model, progress
        self._first_pause = first_pause
        self._host: Host | None = None
        self._opening = asyncio.Lock()
        self._in_flight = 0
        self._changed = asyncio.Condition()
        self._fails_in_a_row = 0
        self._last_answer = time.monotonic()
        self._failing: set[str] = set()  # requests that failed since the last answer
        self._refusals: list[bool] = []  # of the last requests: refused for good
        self._failure: BaseException | None = None

    async def run(self, items: Iterable[Item]) -> None:
        """Run every script to its end. Raises BudgetReached, MachineError; what was bought is on disk."""
        running: set[asyncio.Task[None]] = set()
        ended = asyncio.Event()

        def end(task: asyncio.Task[None]) -> None:
            running.discard(task)
            ended.set()

        try:
            for item in items:
                while len(running) >= 2 + int(self.pace.limit * _SCRIPTS) and not self._failure:
                    ended.clear()
                    await ended.wait()
                if self._failure:
                    break
                task = asyncio.create_task(self._script(item))
                running.add(task)
                task.add_done_callback(end)
            if running:
                await asyncio.wait(running)
        except BaseException:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            raise
        finally:
            if self._host is not None:
                await self._host.close()
                self._host = None
        if self._failure:
            raise self._failure

    async def _script(self, item: Item) -> None:
        script = item.start()
        used = [0, 0, 0]
        try:
            calls = next(script)
            while True:
                answers = await asyncio.gather(
                    *(self._answer(call) for call in calls), return_exceptions=True
                )
                for answer in answers:
                    if isinstance(answer, BaseException):
                        raise answer
                    used = [used[0] + 1, used[1] + answer.prompt_tokens, used[2] + answer.completion_tokens]
                calls = script.send([a for a in answers if isinstance(a, Answer)])
        except StopIteration:
            self.totals.done[item.index] = used[0], used[1], used[2]
            self._progress(self.totals)
        except Exception as error:
            self._failure = self._failure or error
            async with self._changed:
                self._changed.notify_all()

    async def _answer(self, call: Call) -> Answer:
        """The stored answer, or one that is bought now."""
        key = call.key(self._model)
        stored = self.ledger.get(key)
        if stored is not None:
            self.totals.reused += 1
            return stored
        attempts = pauses = 0
        while True:
            try:
                return await self._buy(call, key)
            except CallFailed as failure:
                self.totals.failed += 1
                attempts += not failure.is_busy
                self._failing.add(key)
                is_poison = attempts >= _ATTEMPTS and self._host is not None and self._failing == {key}
                if failure.is_permanent or is_poison:
                    self._count_refusal(failure)
                    return await self._give_up(call, key, failure)
                self._count_failure(failure)
                if failure.retry_after is None:
                    await asyncio.sleep(
                        min(_LONGEST_PAUSE, self._first_pause * 2**pauses) * _spread(call.seed)
                    )
                    pauses += 1

    async def _buy(self, call: Call, key: str) -> Answer:
        reserved = await self._enter(call)
        try:
            host = await self._ready()
            await self.ledger.append_sent(key, reserved.prompt_tokens, reserved.completion_tokens)
            sent = time.monotonic()
            try:
                answer = await host.ask(call, self._timeout())
            except CallFailed as failure:
                if failure.is_busy or failure.is_sent:
                    self.pace.refused(time.monotonic(), failure.retry_after)
                if not failure.is_sent:
                    self.budget.settle(reserved, 0, 0)
                    await self.ledger.append_unused(key)
                raise
            now = time.monotonic()
            self.budget.settle(reserved, answer.prompt_tokens, answer.completion_tokens)
            await self.ledger.append_answer(key, answer, call.stage, call.index)
            self.pace.answered(now, now - sent, answer.completion_tokens + 1)
            self.totals.bought += 1
            self._fails_in_a_row, self._last_answer = 0, now
            self._failing.clear()
            self._refusals = [*self._refusals[1 - _WATCHED :], False]
            self._progress(self.totals)
            return answer
        finally:
            self._in_flight -= 1
            async with self._changed:
                self._changed.notify_all()

    def _timeout(self) -> float | None:
        """Seconds after which a request is given up: the endpoint's until the host's latency is known."""
        return max(_LEAST_TIMEOUT, 20 * self.pace.usual_latency()) if self.totals.bought >= _WATCHED else None

    async def _enter(self, call: Call) -> Reservation:
        """Wait for a place in flight and for the budget, which requests in flight may give back. Raises BudgetReached."""
        async with self._changed:
            while True:
                if self._failure:
                    raise self._failure
                wait = self.pace.resume_at - time.monotonic()
                if wait > 0:
                    self._changed.release()
                    try:
                        await asyncio.sleep(wait)
                    finally:
                        await self._changed.acquire()
                    continue
                if self._in_flight < max(1, int(self.pace.limit)):
                    reserved = self.budget.reserve(call.num_prompt_tokens, call.sampling.max_tokens)
                    if reserved is not None:
                        self._in_flight += 1
                        return reserved
                    if self._in_flight == 0:
                        self._failure = self._failure or BudgetReached()
                        raise self._failure
                await self._changed.wait()

    async def _ready(self) -> Host:
        async with self._opening:
            if self._failure is not None:
                raise self._failure
            if self._host is None:
                try:
                    self._host = await self._open_host()
                except BaseException as error:
                    self._failure = error  # before another script tries it again
                    raise
            return self._host

    def _count_refusal(self, failure: CallFailed) -> None:
        """Raises MachineError where the host refuses most requests for good."""
        self._refusals = [*self._refusals[1 - _WATCHED :], True]
        if sum(self._refusals) * 2 > max(len(self._refusals), 2 * _HOPELESS):
            raise MachineError(
                f"The host refuses most requests: {failure}. Nothing more was sent. Check `endpoint.model` and "
                "`sampling`, and run the same command again."
            )

    def _count_failure(self, failure: CallFailed) -> None:
        """Raises MachineError where nothing comes through any more."""
        self._fails_in_a_row += not failure.is_busy
        is_silent = time.monotonic() - self._last_answer > _BUSY_SECONDS
        if self._fails_in_a_row >= max(_HOPELESS, 2 * int(self.pace.limit)) or (
            failure.is_busy and is_silent
        ):
            raise MachineError(
                f"The host answers nothing any more: {failure}. Every answer so far is saved: look after the host, and run "
                "the same command again."
            )

    async def _give_up(self, call: Call, key: str, failure: CallFailed) -> Answer:
        self.totals.errors += 1
        answer = Answer(str(failure), "error", 0, 0)
        await self.ledger.append_answer(key, answer, call.stage, call.index)
        return answer


def _spread(seed: int) -> float:
    """0.75 to 1.25: requests that failed together do not come again together."""
    return 0.75 + (seed % 1000) / 2000


def replay(items: Iterable[Item], ledger: Ledger, model: str) -> Iterator[tuple[Item, list[Draft] | None]]:
    """The drafts of each script from stored answers alone; None where one is missing."""
    for item in items:
        script = item.start()
        try:
            calls = next(script)
            while True:
                answers = [ledger.get(call.key(model)) for call in calls]
                if any(answer is None for answer in answers):
                    yield item, None
                    break
                calls = script.send([a for a in answers if a is not None])
        except StopIteration as stop:
            yield item, stop.value
