"""Answers are bought once: the ledger, the budget, the pace, and a host with every fault there is."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fake_host import FakeHost, every
from hypothesis import given, settings
from hypothesis import strategies as st

from datamix.core.errors import DatamixError, MachineError, RecipeError
from datamix.synthesis.answer_ledger import Ledger, Spent
from datamix.synthesis.budget import Budget, Limits
from datamix.synthesis.calls import Answer, Call, Draft, Item, Sampling, Script, seed_of
from datamix.synthesis.host import Endpoint, Host, HostProfile
from datamix.synthesis.pacing import Pace
from datamix.synthesis.runner import BudgetReached, Runner, Totals, replay

ASKED = Sampling(1.0, 32)


def two_steps(index: str) -> Script:
    """An instruction, then its answer."""
    first = Call(
        "instruction",
        index,
        ASKED,
        seed_of("job", index, "instruction"),
        prompt="<user>",
        num_prompt_tokens=6,
    )
    (instruction,) = yield [first]
    prompt = f"<user>{instruction.text}<assistant>"
    second = Call("answer", index, ASKED, 1, prompt=prompt, num_prompt_tokens=len(prompt))
    (answer,) = yield [second]
    if answer.finish == "error":
        return [Draft(index, reason="refused")]
    messages = ({"role": "user", "content": instruction.text}, {"role": "assistant", "content": answer.text})
    return [Draft(index, messages)]


def items(count: int) -> list[Item]:
    return [Item(str(n), n, "", 1.0, partial(two_steps, str(n))) for n in range(count)]


def buy(
    folder: Path, host: FakeHost, count: int = 20, limits: Limits | None = None, **options: Any
) -> tuple[Totals, Ledger, Budget]:
    """Run ``count`` scripts against the host in a ledger below ``folder``."""
    ledger = Ledger(folder)
    budget = Budget(limits or Limits(), ledger.spent)
    endpoint = Endpoint(host.url, host.name, "sk-secret", options.get("timeout", 30.0))

    async def open_host() -> Host:
        return Host(endpoint, HostProfile())

    async def run() -> Runner:
        pace = Pace(options.get("in_flight"))
        runner = Runner(ledger, budget, open_host, host.name, pace, first_pause=0.002)
        await runner.run(items(count))
        return runner

    try:
        return asyncio.run(run()).totals, ledger, budget
    finally:
        ledger.close()


def records(folder: Path, count: int = 20) -> list[list[Draft] | None]:
    return [drafts for _, drafts in replay(items(count), Ledger(folder), "small")]


def test_a_finished_run_buys_nothing_again_and_more_items_buy_the_difference(tmp_path: Path) -> None:
    with FakeHost().running() as host:
        assert buy(tmp_path, host)[0].bought == 40
        assert buy(tmp_path, host)[0].bought == 0
        totals = buy(tmp_path, host, count=25)[0]
    assert (totals.bought, totals.reused) == (10, 40)
    seeds = Counter((body["prompt"], body["seed"]) for body in host.asked)
    assert set(seeds.values()) == {1}


def test_the_records_of_stored_answers_are_the_same_whatever_came_first(tmp_path: Path) -> None:
    with FakeHost(slots=3, seconds=0.001).running() as host:
        buy(tmp_path / "a", host, in_flight=1)
        buy(tmp_path / "b", host, in_flight=7)
    assert records(tmp_path / "a") == records(tmp_path / "b")


@pytest.mark.parametrize("fault", ["429", "429:0", "500", "503", "cut", "no json", "wrong json"])
def test_every_answer_comes_through_a_host_that_fails_now_and_then(tmp_path: Path, fault: str) -> None:
    with FakeHost(fault=every(4, fault)).running() as host:
        totals, _, budget = buy(tmp_path, host)
    assert (totals.bought, totals.failed > 0, totals.errors) == (40, True, 0)
    assert all(drafts and drafts[0].messages for drafts in records(tmp_path))
    assert budget.requests == host.num_requests
    known = Ledger(tmp_path).spent
    assert known.requests == host.num_requests
    assert (known.unanswered == 0) == (fault in ("429", "429:0", "503"))  # the others may have been billed
    assert known.prompt_tokens + known.completion_tokens == budget.tokens
    assert "sk-secret" not in "".join(p.read_text() for p in tmp_path.iterdir())


def test_a_request_that_the_host_never_answers_is_sent_again(tmp_path: Path) -> None:
    silent = {5, 6}
    with FakeHost(fault=lambda n, body: "silence" if n in silent else None).running() as host:
        totals, _, _ = buy(tmp_path, host, timeout=0.3)
    assert (totals.bought, totals.failed) == (40, 2)


@pytest.mark.parametrize("status", ["500", "400"])
def test_one_row_that_the_host_cannot_answer_stops_nothing(tmp_path: Path, status: str) -> None:
    bad = seed_of("job", "3", "instruction")
    with FakeHost(fault=lambda n, body: status if body["seed"] == bad else None).running() as host:
        totals, _, _ = buy(tmp_path, host)
    assert (totals.bought, totals.errors) == (38 + 1, 1)  # it is asked on with what the error left
    assert len(records(tmp_path)) == 20


@pytest.mark.parametrize("fault", ["500", "400", "no json"])
def test_a_host_that_fails_always_ends_the_run_and_can_be_tried_again(tmp_path: Path, fault: str) -> None:
    with (
        FakeHost(fault=every(1, fault)).running() as host,
        pytest.raises(MachineError, match="run the same command again"),
    ):
        buy(tmp_path, host, count=60)
    with FakeHost().running() as host:
        if fault == "400":
            return
        assert buy(tmp_path, host)[0].bought == 40


def test_a_host_that_is_not_there_is_an_error_of_the_machine(tmp_path: Path) -> None:
    host = FakeHost(url="http://127.0.0.1:9/v1")
    with pytest.raises(MachineError, match="not reached"):
        buy(tmp_path, host, count=1, in_flight=1)
    assert Ledger(tmp_path).spent.unanswered == 0


def test_a_key_that_is_refused_is_named_and_not_shown(tmp_path: Path) -> None:
    with FakeHost(fault=every(1, "401")).running() as host, pytest.raises(RecipeError) as error:
        buy(tmp_path, host)
    assert "api_key_env" in str(error.value)
    assert "sk-secret" not in str(error.value)


@pytest.mark.parametrize(
    "limits",
    [
        Limits(requests=17),
        Limits(tokens=900),
        Limits(money=0.001, prompt_price=1.0, completion_price=2.0),
    ],
    ids=["requests", "tokens", "money"],
)
def test_a_budget_is_never_passed_also_over_several_runs(tmp_path: Path, limits: Limits) -> None:
    with FakeHost(fault=every(5, "500")).running() as host:
        for _ in range(3):
            with pytest.raises(BudgetReached):
                buy(tmp_path, host, count=200, limits=limits)
        used = (
            [host.count(b["prompt"]) for b in host.asked],
            [len(host.text(b, b["prompt"]).split(" ")) for b in host.asked],
        )
    assert host.num_requests <= (limits.requests or 10**9)
    assert sum(used[0]) + sum(used[1]) <= (limits.tokens or 10**9)
    assert limits.cost(sum(used[0]), sum(used[1])) <= (limits.money or 10**9) * 10**12
    assert host.num_requests >= 10


def test_a_budget_believes_a_host_that_counts_more_tokens() -> None:
    budget = Budget(Limits(tokens=100), Spent())
    first = budget.reserve(10, 20)
    second = budget.reserve(10, 20)
    assert first is not None
    assert second is not None
    budget.settle(first, 14, 5)
    budget.settle(second, 14, 5)
    assert budget.tokens == 38
    third = budget.reserve(10, 20)
    assert third is not None
    assert third.prompt_tokens == 14


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 2000), damage=st.sampled_from(["cut", "zeros"]))
def test_a_file_that_a_kill_left_half_written_loses_only_its_end(
    tmp_path_factory: pytest.TempPathFactory, cut: int, damage: str
) -> None:
    folder = tmp_path_factory.mktemp("ledger")

    async def write() -> None:
        ledger = Ledger(folder)
        for n in range(10):
            await ledger.append_sent(f"{n:032x}", 5, 7)
            await ledger.append_answer(f"{n:032x}", Answer(f"回答\n{n}", "stop", 5, 3), "answer", str(n))
        ledger.close()

    asyncio.run(write())
    path = folder / "00000.jsonl"
    whole = path.read_bytes()
    cut = min(cut, len(whole))
    path.write_bytes(whole[:cut] + (b"\0" * (len(whole) - cut) if damage == "zeros" else b""))
    num_answers = sum(b'"key"' in line for line in whole[:cut].split(b"\n")[:-1])
    ledger = Ledger(folder)
    assert len(ledger) == num_answers
    for n in range(num_answers):
        answer = ledger.get(f"{n:032x}")
        assert answer is not None
        assert answer.text == f"回答\n{n}"
    assert ledger.spent.requests - len(ledger) == ledger.spent.unanswered <= 1
    assert ledger.spent.completion_tokens == 3 * len(ledger) + 7 * ledger.spent.unanswered


def test_two_processes_never_write_into_one_file(tmp_path: Path) -> None:
    async def write() -> None:
        first, second = Ledger(tmp_path), Ledger(tmp_path)
        await first.append_sent("a" * 32, 1, 1)
        await second.append_sent("b" * 32, 1, 1)
        await first.append_answer("a" * 32, Answer("x", "stop", 1, 1), "answer", "0")
        await second.append_answer("b" * 32, Answer("y", "stop", 1, 1), "answer", "1")

    asyncio.run(write())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000.jsonl", "00001.jsonl"]
    assert len(Ledger(tmp_path)) == 2


def test_a_full_disk_is_an_error_and_what_was_written_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 8:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with FakeHost().running() as host, pytest.raises(DatamixError, match="No space left"):
        buy(tmp_path, host)
    monkeypatch.undo()
    with FakeHost().running() as host:
        buy(tmp_path, host)
    assert all(records(tmp_path))


PARENT = """
import os, sys
sys.path[:0] = [{tests!r}, {synthesis!r}]
from pathlib import Path
import openai
from fake_host import FakeHost
from test_runner import buy
for line in sys.stdin:
    child = os.fork()
    if not child:
        buy(Path({folder!r}), FakeHost(url={url!r}), count={count}, in_flight=8)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def killed_runs(folder: Path, host: FakeHost, count: int, kills: int) -> Iterator[int]:
    """Start the run again and again and kill it, later each time; the last one is left to end. Yields exit codes.

    Each run is a process of its own, forked from one that has imported everything.
    """
    here = Path(__file__).parent
    code = PARENT.format(
        tests=str(here.parent), synthesis=str(here), url=host.url, folder=str(folder), count=count
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as parent:  # type: ignore[call-overload]
        for kill in range(kills + 1):
            before = len(host.asked)
            parent.stdin.write("again\n")
            parent.stdin.flush()
            child = int(parent.stdout.readline())
            if kill < kills:
                while len(host.asked) < before + 1 + kill % 9:
                    time.sleep(0.001)
                os.kill(child, signal.SIGKILL)
            yield int(parent.stdout.readline())
        parent.stdin.close()


def check_kills(folder: Path, count: int, kills: int) -> None:
    with FakeHost(slots=8, seconds=0.002).running() as host:
        codes = list(killed_runs(folder, host, count, kills))
        last = buy(folder, host, count=count)[0]
    assert codes.count(-signal.SIGKILL) >= kills * 0.9
    assert codes[-1] == 0
    assert last.bought == 0
    stored = [
        line
        for p in folder.glob("*.jsonl")
        for line in p.read_bytes().split(b"\n")
        if line.startswith(b'{"key"')
    ]
    assert len(stored) == len({line[:42] for line in stored}) == 2 * count
    asked = Counter((b["prompt"], b["seed"]) for b in host.asked)
    assert len(asked) == 2 * count
    assert sum(asked.values()) - len(asked) <= kills * 8  # what was in flight at each kill
    assert all(drafts and drafts[0].messages for drafts in records(folder, count))


def test_a_run_that_is_killed_again_and_again_ends_complete_and_buys_twice_only_what_was_in_flight(
    tmp_path: Path,
) -> None:
    check_kills(tmp_path, 60, 10)


@pytest.mark.slow
def test_two_hundred_kills(tmp_path: Path) -> None:
    check_kills(tmp_path, 1200, 200)


def test_the_pace_finds_what_a_host_can_take() -> None:
    def simulate(slots: int, refuses_above: int | None = None) -> float:
        pace, now, waiting = Pace(), 0.0, [0.0] * slots
        for _ in range(6000):
            in_flight = int(pace.limit)
            if refuses_above and in_flight > refuses_above:
                pace.refused(now, None)
                now += 0.01
                continue
            now += 1.0 / min(in_flight, slots)  # a second an answer, so many at a time
            pace.answered(now, max(1.0, in_flight / slots), 100)
        assert waiting
        return pace.limit

    for slots in (4, 32, 200):
        assert slots <= simulate(slots) <= 3.2 * slots
    assert 12 <= simulate(200, refuses_above=20) <= 21


def test_requests_in_flight_follow_the_host(tmp_path: Path) -> None:
    with FakeHost(slots=24, seconds=0.1).running() as host:
        buy(tmp_path, host, count=150)
    assert (
        host.most_in_flight > 8
    )  # how far above the slots: the simulation above, which no slow moment of a machine disturbs
    with FakeHost(slots=24).running() as host:
        buy(tmp_path / "fixed", host, count=60, in_flight=3)
    assert host.most_in_flight <= 3


def test_retry_after_stops_all_sending(tmp_path: Path) -> None:
    times: list[float] = []
    lock = threading.Lock()

    def fault(number: int, body: dict[str, Any]) -> str | None:
        with lock:
            times.append(time.monotonic())
        return "429:0.5" if number == 10 else None

    with FakeHost(fault=fault, slots=4, seconds=0.002).running() as host:
        buy(tmp_path, host, in_flight=4)
    gaps = [b - a for a, b in pairwise(times[9:])]
    assert max(gaps) >= 0.45
