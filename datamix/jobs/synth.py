"""``datamix synth``: a recipe in, records that a model wrote out.

Items are asked for in waves: as many as records are missing, by the share that passed so far, until ``size`` pass, the sources end or the
budget does. Every wave is a function of the stored answers, so a run that was killed goes on where it was, a finished one buys nothing, a
larger size buys the difference, and other filters buy nothing. The host is not even looked up before something must be bought.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamix import __version__
from datamix.core.errors import DataError, MachineError, RecipeError
from datamix.core.machine import failures_at
from datamix.jobs.synth_filters import References, Verdict, choose, judge, read_references
from datamix.jobs.synth_folder import ANSWERS, begin, check_synth_out, hold_synth, publish
from datamix.jobs.synth_sources import Job, read_sources, rejected_rows, source_records
from datamix.pipeline.built_sets import default_cache
from datamix.pipeline.prepare_sources import PreparedSource
from datamix.pipeline.progress import Screen, Watch
from datamix.pipeline.steps import Options, open_context
from datamix.recipe.synth_recipe import SynthRecipe
from datamix.reporting.synth_page import render_synth_card, render_synth_report
from datamix.synthesis.answer_ledger import Ledger
from datamix.synthesis.budget import Budget, Limits
from datamix.synthesis.calls import Answer, Call, Draft, Item
from datamix.synthesis.forecast import beginning, forecast
from datamix.synthesis.host import CallFailed, Endpoint, Host, HostProfile
from datamix.synthesis.host_checks import check_host, check_same_model, profile_value, read_profile
from datamix.synthesis.pacing import Pace
from datamix.synthesis.runner import BudgetReached, Runner, Totals, replay
from datamix.tokenize.tokenizer_files import find_tokenizer
from datamix.tokenize.user_turns import UserTurns

_FORECAST_REQUESTS = 200
_NEWS_SECONDS = 30.0
_CHECK_PAUSES = (0.5, 2.0, 8.0)  # before a check of the host is sent again
_HOPELESS_ITEMS, _HOPELESS_SHARE = 128, 0.02  # of records that pass; below it more of the same is no use


@dataclass
class _Progress:
    """What is asked for so far, in the order of items, and what became of it."""

    items: list[Item]
    drafts: list[Draft]
    verdicts: list[Verdict]
    why: str = ""  # it is not complete

    @property
    def num_passed(self) -> int:
        return sum(verdict.reason is None for verdict in self.verdicts)


def synthesize(recipe: SynthRecipe, out: Path, screen: Screen | None = None) -> dict[str, Any]:
    """Have a model write the records of a recipe into OUT; return the manifest. Raises DatamixError."""
    screen = screen or Screen(quiet=True)
    check_synth_out(out)
    prompts = None
    if recipe.tokenizer is not None:
        files = find_tokenizer(recipe.tokenizer, recipe.base)
        prompts = UserTurns(files) if recipe.synth == "magpie" else None
    with failures_at(out, "writing the records", "choose another folder with -o"), hold_synth(out):
        context = open_context(Options(out, default_cache(out)), screen)
        try:
            sources = read_sources(recipe, context) if recipe.sources else ()
            job = Job(recipe, prompts, tuple(source_records(recipe, sources)))
            references = read_references(recipe, job, context)
        finally:
            context.close()
        ledger = Ledger(out / ANSWERS)
        try:
            begin(
                out,
                _manifest(job, ledger, sources, _Progress([], [], [], "Nothing was asked yet."), [], []),
                screen.say,
            )
            progress = _Purchase(job, ledger, references, screen).run()
            manifest = _publish(out, job, ledger, sources, progress, screen)
        finally:
            ledger.close()
    if progress.why.startswith("Only"):
        raise DataError(f"{out}: {progress.why}")
    return manifest


class _Purchase:
    """Buys what a job lacks, wave by wave."""

    def __init__(self, job: Job, ledger: Ledger, references: References, screen: Screen) -> None:
        self.job, self.ledger, self.references, self.screen = job, ledger, references, screen
        asked = job.recipe.budget
        price = asked.price
        prices = (price.prompt, price.completion) if price else (0.0, 0.0)
        self.budget = Budget(Limits(asked.requests, asked.tokens, asked.money, *prices), ledger.spent)
        self._is_forecast = False
        self._said = self._start = time.monotonic()
        self._missing: list[Item] = []  # of the wave
        self._before = 0, 0, 0, 0  # passed, requests, prompt and completion tokens when the wave began
        self._num_done = 0
        self._profile: HostProfile | None = None  # where this process has checked the host

    def run(self) -> _Progress:
        """Ask until enough passed, nothing is left to ask, or the budget is reached."""
        progress = _Progress([], [], [])
        while True:
            needed = (self.job.recipe.size or len(self.job.records)) - progress.num_passed
            if self.job.recipe.size is None and progress.items:
                break
            count = self.job.next_count(len(progress.items), needed, progress.num_passed) if needed > 0 else 0
            wave = self.job.items(len(progress.items), count, progress.drafts) if count else []
            if not wave:
                break
            is_reached = self._buy(wave, progress)
            progress = self._after(progress, wave)
            if is_reached:
                progress.why = "The budget is reached."
                break
            asked, passed = len(progress.items), progress.num_passed
            if self.job.is_open and asked >= _HOPELESS_ITEMS and passed < asked * _HOPELESS_SHARE:
                reasons = Counter(v.reason for v in progress.verdicts if v.reason).most_common(3)
                why = ", ".join(f"{reason} {number:,}" for reason, number in reasons)
                progress.why = (
                    f"Only {passed:,} of {asked:,} records pass the filters ({why}). Nothing more was asked: look at removed/, "
                    "then change the sampling, the system texts or the filters."
                )
                break
        return progress

    def _after(self, progress: _Progress, wave: list[Item]) -> _Progress:
        drafts = list(progress.drafts)
        for _, found in replay(
            sorted(wave, key=lambda item: item.number), self.ledger, self.job.recipe.endpoint.model
        ):
            drafts += found or []
        return _Progress([*progress.items, *wave], drafts, judge(drafts, self.job, self.references))

    def _buy(self, wave: list[Item], progress: _Progress) -> bool:
        """Have every answer of a wave in the ledger; whether the budget ended it."""
        model = self.job.recipe.endpoint.model
        found = list(replay(wave, self.ledger, model))
        self._missing = [item for item, drafts in found if drafts is None]
        if not self._missing:
            return False
        stored = [draft for _, drafts in found for draft in drafts or []]
        passed = sum(v.reason is None for v in judge(stored, self.job, self.references))
        self._before = progress.num_passed + passed, self.budget.requests, *self.budget.settled
        limit = self.job.recipe.endpoint.max_in_flight
        pace = Pace(None if limit == "auto" else limit)
        with self.screen.phase("ask", len(self._missing)) as watch:
            self._num_done = 0
            runner = Runner(
                self.ledger,
                self.budget,
                self._open_host,
                model,
                pace,
                lambda totals: self._show(totals, watch),
            )
            try:
                asyncio.run(runner.run(self._missing))
            except BudgetReached:
                return True
        return False

    async def _open_host(self) -> Host:
        """The host, checked before anything is bought from it."""
        recipe, probe = self.job.recipe, self.job.probe
        endpoint = Endpoint(recipe.endpoint.base_url.rstrip("/"), recipe.endpoint.model, read_key(recipe))
        prompts = self.job.prompts
        bos, encode = (prompts.bos, prompts.encode) if prompts else ("", None)

        async def ask(profile: HostProfile, call: Call) -> Answer:
            host = Host(endpoint, profile, bos, encode)
            try:
                return await self._ask_check(host, call)
            finally:
                await host.close()

        if self._profile is not None:
            return Host(endpoint, self._profile, bos, encode)
        name = "host, completions" if probe.completes else "host, chat"
        stored = self.ledger.notes.get(name)
        try:
            if stored is None:
                profile, notes = await check_host(ask, probe)
                await self.ledger.append_note(name, profile_value(profile))
                await self.ledger.append_note("findings", notes)
            else:
                profile = read_profile(stored)
                notes = await check_same_model(ask, probe, profile)
        except CallFailed as failure:
            raise MachineError(
                f"endpoint: {recipe.endpoint.base_url} answers nothing ({failure}). Start the host, or correct "
                "endpoint.base_url, and run the same command again."
            ) from None
        for note in notes:
            self.screen.say(note)
        self._profile = profile
        return Host(endpoint, profile, bos, encode)

    async def _ask_check(self, host: Host, call: Call) -> Answer:
        """A small request that is paid for like any other, and tried again where the host is busy."""
        key = f"{call.key(host.endpoint.model)[:26]}{len(self.ledger):06d}"
        for pause in (*_CHECK_PAUSES, None):
            reserved = self.budget.reserve(64 + len((call.prompt or "").encode()), call.sampling.max_tokens)
            if reserved is None:
                raise BudgetReached
            await self.ledger.append_sent(key, reserved.prompt_tokens, reserved.completion_tokens)
            try:
                answer = await host.ask_uncut(call)
            except CallFailed as failure:
                if not failure.is_sent:
                    self.budget.settle(reserved, 0, 0)
                    await self.ledger.append_unused(key)
                if failure.is_permanent or pause is None:
                    raise
                await asyncio.sleep(failure.retry_after if failure.retry_after is not None else pause)
                continue
            self.budget.settle(reserved, answer.prompt_tokens, answer.completion_tokens)
            await self.ledger.append_answer(key, answer, "check", call.index)
            return answer
        raise AssertionError

    def _show(self, totals: Totals, watch: Watch) -> None:
        """The bar, the forecast once, and news every half minute."""
        new = len(totals.done) - self._num_done
        if new:
            self._num_done = len(totals.done)
            watch.advance(new, f"{self.budget.requests:,} requests")
        now = time.monotonic()
        is_due = totals.bought >= _FORECAST_REQUESTS and not self._is_forecast
        if not is_due and now - self._said < _NEWS_SECONDS:
            return
        self._is_forecast, self._said = self._is_forecast or is_due, now
        text = self._forecast_text(totals)
        rate = totals.bought / max(1e-3, now - self._start)
        self.screen.say(f"{totals.bought:,} answers, {rate:.1f}/s; {text}")

    def _forecast_text(self, totals: Totals) -> str:
        """What it costs so far and will in the end."""
        known = beginning(self._missing, totals.done)
        drafts = [
            d for _, found in replay(known, self.ledger, self.job.recipe.endpoint.model) for d in found or []
        ]
        passed = sum(v.reason is None for v in judge(drafts, self.job, self.references))
        paid, size = self.budget.settled, self.job.recipe.size
        spent = f"{sum(paid):,} tokens{self._price(*paid)} so far"
        before = self._before
        rest: Sequence[Item] | int = (
            self._missing[len(known) :] if size is None else size - before[0] - passed
        )
        seen = forecast(known, totals.done, passed, rest)
        if seen is None:
            return spent
        requests = before[1] + seen.requests
        prompt, completion = before[2] + seen.prompt_tokens, before[3] + seen.completion_tokens
        price = self._price(prompt, completion)
        return (
            f"{seen.pass_share:.0%} pass; {spent}, about {requests:,.0f} requests and {prompt + completion:,.0f} "
            f"tokens{price} in the end"
        )

    def _price(self, prompt_tokens: float, completion_tokens: float) -> str:
        money = self.budget.limits.money_of(prompt_tokens, completion_tokens)
        return f", {money:.2f}" if self.job.recipe.budget.price else ""


def read_key(recipe: SynthRecipe) -> str:
    """The key of the endpoint, from its file or variable; empty where there is none. Raises RecipeError."""
    endpoint = recipe.endpoint
    if endpoint.api_key_file is None:
        return os.environ.get(endpoint.api_key_env, "").strip()
    path = Path(recipe.base) / Path(endpoint.api_key_file).expanduser()
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"endpoint.api_key_file: {path} cannot be read ({type(error).__name__}).") from None


def _publish(
    out: Path,
    job: Job,
    ledger: Ledger,
    sources: Sequence[PreparedSource],
    progress: _Progress,
    screen: Screen,
) -> dict[str, Any]:
    verdicts = choose(progress.drafts, progress.verdicts, job)
    size = job.recipe.size
    if not progress.why and size is not None and job.is_open is False and progress.num_passed < size:
        screen.say(f"The sources give {progress.num_passed:,} records that pass, and size is {size:,}.")
    written = [_record(d, job) for d, v in zip(progress.drafts, verdicts, strict=True) if v.reason is None]
    removed = [
        {
            "id": f"{job.recipe.name}-{draft.index}",
            "prompt_id": draft.prompt_id,
            "reason": verdict.reason,
            "kept": f"{job.recipe.name}-{verdict.kept}" if verdict.kept else None,
            "similarity": verdict.similarity,
            "text": draft.detail or "\n\n".join(str(t.get("content") or "") for t in draft.messages),
        }
        for draft, verdict in zip(progress.drafts, verdicts, strict=True)
        if verdict.reason is not None
    ]
    manifest = _manifest(job, ledger, sources, progress, written, removed)
    pages = {"report.html": render_synth_report(manifest, written), "README.md": render_synth_card(manifest)}
    return publish(out, manifest, written, removed, list(rejected_rows(sources)), pages, screen.say)


def _record(draft: Draft, job: Job) -> dict[str, Any]:
    """A record as a source of a build has it."""
    meta = {
        "id": f"{job.recipe.name}-{draft.index}",
        "prompt_id": draft.prompt_id,
        "model": job.recipe.model_name,
    }
    tools = {"tools": list(draft.tools)} if draft.tools else {}
    if not draft.rejected:
        return {"messages": list(draft.messages), **tools, "meta": meta}
    prompt, chosen = list(draft.messages[:-1]), [draft.messages[-1]]
    return {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": list(draft.rejected),
        "margin": draft.margin,
        **tools,
        "meta": meta,
    }


def _manifest(
    job: Job, ledger: Ledger, sources: Sequence[PreparedSource], progress: _Progress,
    written: Sequence[dict[str, Any]], removed: Sequence[dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """Everything about the folder but its files; a function of recipe, sources and stored answers."""
    recipe, spent = job.recipe, ledger.recounted()
    tokenizer = find_tokenizer(recipe.tokenizer, recipe.base) if recipe.tokenizer is not None else None
    price = recipe.budget.price
    limits = Limits(None, None, None, price.prompt, price.completion) if price else Limits()
    gate = Counter(v for draft in progress.drafts for v in draft.meta.get("verdicts", ()))
    is_enough = recipe.size is None or not job.is_open or len(written) >= recipe.size
    return {
        "datamix_version": __version__,
        "name": recipe.name,
        "synth": recipe.synth,
        "seed": recipe.seed,
        "recipe": recipe.published(),
        "recipe_sha256": recipe.sha256(),
        "complete": not progress.why and is_enough,
        "why": progress.why,
        "records": {"asked": len(progress.drafts), "written": len(written), "removed": len(removed)},
        "removed_by": dict(sorted(Counter(str(row["reason"]) for row in removed).items())),
        **({"gate": dict(sorted(gate.items()))} if gate else {}),
        "model": {
            "name": recipe.model_name,
            "license": recipe.license,
            "tokenizer_sha256": tokenizer.sha256 if tokenizer else None,
            "chat_template_sha256": tokenizer.chat_template_sha256 if tokenizer else None,
        },
        "prompt": job.probe.prefix,
        "host": list(ledger.notes.get("findings", [])),
        "spent": {
            "requests": spent.requests,
            "unanswered": spent.unanswered,
            "prompt_tokens": spent.prompt_tokens,
            "completion_tokens": spent.completion_tokens,
            "money": limits.money_of(spent.prompt_tokens, spent.completion_tokens) if price else None,
        },
        "inputs": [
            {"source": source.name, "path": file.label, "sha256": file.sha256, "bytes": file.num_bytes}
            for source in sources for file in source.files
        ],
    }  # fmt: skip
