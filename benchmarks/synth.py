"""``datamix synth`` against a plain load of the same requests, and how near its forecast is; a host whose pace is known, in this process.

    python benchmarks/synth.py [RECORDS] [SLOTS]

The host works on SLOTS requests at a time and lets others wait, as vLLM does. The plain load sends the requests that the job sent, with
as many in flight as the host has slots, through the same client. Both run in one process beside the host, one after the other, twice.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from fake_host import FakeHost

from datamix.synthesis.answer_ledger import Ledger
from datamix.synthesis.budget import Budget, Limits
from datamix.synthesis.calls import Call, Draft, Item, Sampling, Script, seed_of
from datamix.synthesis.forecast import beginning, forecast
from datamix.synthesis.host import Endpoint, Host, HostProfile
from datamix.synthesis.pacing import Pace
from datamix.synthesis.runner import Runner, Totals

ASKED = Sampling(1.0, 64)


def two_steps(index: str) -> Script:
    """An instruction, then its answer."""
    first = Call("instruction", index, ASKED, seed_of("job", index, "instruction"), prompt="<user>")
    (told,) = yield [first]
    (answer,) = yield [Call("answer", index, ASKED, 1, prompt=f"<user>{told.text}<assistant>")]
    return [Draft(index, ({"role": "assistant", "content": answer.text},))]


def run_job(folder: Path, host: FakeHost, count: int) -> tuple[float, Totals, list[Item], Totals]:
    """Seconds, what was done, and what was done after 200 requests."""
    ledger = Ledger(folder)
    early = Totals()

    def watch(totals: Totals) -> None:
        if totals.bought == 200:
            early.done.update(totals.done)

    async def open_host() -> Host:
        return Host(Endpoint(host.url, host.name), HostProfile())

    async def run() -> Totals:
        runner = Runner(ledger, Budget(Limits(), ledger.spent), open_host, host.name, Pace(), watch)
        await runner.run(items)
        return runner.totals

    items = [Item(str(n), n, "", 1.0, partial(two_steps, str(n))) for n in range(count)]
    start = time.perf_counter()
    totals = asyncio.run(run())
    return time.perf_counter() - start, totals, items, early


def run_plain(host: FakeHost, bodies: list[dict[str, object]], slots: int) -> float:
    """Seconds for the same requests by a plain loop with ``slots`` tasks."""

    async def run() -> None:
        sender = Host(Endpoint(host.url, host.name), HostProfile())
        waiting = iter(bodies)

        async def work() -> None:
            for body in waiting:
                call = Call("x", "x", ASKED, int(str(body["seed"])), prompt=str(body["prompt"]))
                await sender.ask(call)

        await asyncio.gather(*(work() for _ in range(slots)))
        await sender.close()

    start = time.perf_counter()
    asyncio.run(run())
    return time.perf_counter() - start


def main(count: int = 1000, slots: int = 16) -> None:
    import openai  # before the clock runs: loading the client takes a second

    print(f"openai {openai.__version__}, {count:,} records of two requests, {slots} slots", flush=True)
    ratios = []
    with FakeHost(slots=slots, seconds=0.1, token_seconds=0.02).running() as host:
        for _ in range(2):
            with tempfile.TemporaryDirectory() as folder:
                host.asked.clear()
                seconds, totals, items, early = run_job(Path(folder), host, count)
                bodies = list(host.asked)
                plain = run_plain(host, bodies, slots)
            ratios.append(plain / seconds)
            print(
                f"{len(bodies):,} requests: synth {len(bodies) / seconds:.1f}/s with at most {host.most_in_flight} in flight, "
                f"plain load {len(bodies) / plain:.1f}/s: {plain / seconds:.1%}",
                flush=True,
            )
    known = beginning(items, early.done)
    seen = forecast(known, early.done, len(known), items[len(known) :])
    sums = [sum(cost[n] for cost in totals.done.values()) for n in range(3)]
    if seen is not None:
        off = (seen.prompt_tokens + seen.completion_tokens) / (sums[1] + sums[2]) - 1
        print(f"forecast after 200 requests, from {len(known)} records: {off:+.1%} of the tokens at the end")
    errors = []
    for start in range(0, count - 100, 25):  # the same for other beginnings
        part = items[start : start + 100]
        guess = forecast(part, totals.done, 100, count - 100)
        if guess is not None:
            errors.append(abs((guess.prompt_tokens + guess.completion_tokens) / (sums[1] + sums[2]) - 1))
    print(
        f"of {len(errors)} beginnings of 200 requests: median {statistics.median(errors):.1%}, largest {max(errors):.1%}"
    )
    print(f"median of the ratios {statistics.median(ratios):.1%}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
