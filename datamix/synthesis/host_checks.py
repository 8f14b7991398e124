"""What a host does with a prompt, found by a few small requests before anything is bought.

Hosts differ where it decides the data: some apply a chat template to ``/completions`` (then no user turn can be opened), some add a
BOS to a prompt that has one, some read control tokens as text, some ignore ``stop``. The number of prompt tokens that the host counts
tells the first three, a stop in the middle of a known reply the last. Three greedy replies are kept: another model that answers
under the same name later gives three other ones.

Cost: six to nine requests of at most 16 tokens once, and one each time an interrupted job goes on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from datamix.core.errors import RecipeError
from datamix.synthesis.calls import Answer, Call, Sampling
from datamix.synthesis.host import CallFailed, HostProfile

_PROBES = ("1 2 3 4 5 6 7 8", "The capital of France is", "def fibonacci(n):")
_GREEDY = Sampling(0.0, 16)
_SAME_CHARS = 4  # equal beginnings of a greedy reply: what batching changes comes later

Ask = Callable[[HostProfile, Call], Awaitable[Answer]]  # unlike ``Host.ask`` it cuts nothing at stops


@dataclass(frozen=True)
class HostProbe:
    """What a job knows of its prompts."""

    completes: bool  # prompts are sent to /completions
    prefix: str = ""  # the beginning of a prompt
    bos: str = ""
    num_tokens: int | None = None  # of the prefix, by the recipe's tokenizer


async def check_host(ask: Ask, probe: HostProbe) -> tuple[HostProfile, list[str]]:
    """How to send to a host, and what a person should know of it. Raises RecipeError where it cannot be used."""
    profile, first = await _parameters(ask, probe)
    notes = []
    if profile.plain_parameters or profile.without_seed:
        notes.append(
            "The host refuses parameters: "
            + ("seed, " if profile.without_seed else "")
            + "skip_special_tokens."
        )
    if probe.completes:
        profile, found = await _prompt_tokens(ask, profile, probe)
        notes += found
        if first.text and await _ignores_stop(ask, profile, first.text):
            profile = replace(profile, ignores_stops=True)
            notes.append(
                "The host ignores `stop`: answers are cut here, and the tokens behind the stop are paid for."
            )
    replies = [first.text, *[(await ask(profile, _call(probe, n))).text for n in (1, 2)]]
    identity = (first.model, "\n".join(map(repr, replies)), first.prompt_tokens)
    return replace(profile, identity=identity), notes


async def check_same_model(ask: Ask, probe: HostProbe, profile: HostProfile) -> list[str]:
    """Notes on a host that is used again. Raises RecipeError where another model answers under the name."""
    name, replies, num_tokens = profile.identity
    first = await ask(profile, _call(probe, 0))
    before = replies.split("\n")
    if (first.model, first.prompt_tokens) == (name, num_tokens) and repr(first.text) == before[0]:
        return []
    texts = [first.text, *[(await ask(profile, _call(probe, n))).text for n in (1, 2)]]
    same = [a[: _SAME_CHARS + 1] == repr(b)[: _SAME_CHARS + 1] for a, b in zip(before, texts, strict=True)]
    if first.prompt_tokens != num_tokens or not any(same):
        raise RecipeError(
            f"endpoint: another model answers under this name than the one that wrote the answers so far (it was {name!r}; to "
            f"{_PROBES[0]!r} it answered {before[0]}, now {first.text!r}). Start that model again, or name another "
            "folder with -o for this one."
        )
    if first.model != name:
        return [
            f"The host calls the model {first.model!r}, and called it {name!r} before; its replies are the same."
        ]
    return ["The host's greedy replies vary a little from run to run (batching, as a rule)."]


def profile_value(profile: HostProfile) -> dict[str, Any]:
    """A profile as the ledger holds it."""
    return asdict(profile)


def read_profile(value: dict[str, Any]) -> HostProfile:
    return HostProfile(**{**value, "identity": tuple(value["identity"])})


def _call(probe: HostProbe, number: int, prompt: str | None = None, stops: tuple[str, ...] = ()) -> Call:
    text = prompt if prompt is not None else _PROBES[number]
    if probe.completes:
        return Call("check", str(number), _GREEDY, 0, prompt=text, stops=stops)
    return Call("check", str(number), _GREEDY, 0, messages=(("user", text),), stops=stops)


async def _parameters(ask: Ask, probe: HostProbe) -> tuple[HostProfile, Answer]:
    """The richest form of a request that the host takes, and its reply to the first probe."""
    attempts = [
        HostProfile(),
        HostProfile(plain_parameters=True),
        HostProfile(plain_parameters=True, without_seed=True),
    ]
    for profile in attempts:
        try:
            return profile, await ask(profile, _call(probe, 0))
        except CallFailed as failure:
            if not failure.is_permanent:
                raise
            said = str(failure)
    path = "/completions" if probe.completes else "/chat/completions"
    why = (
        " Magpie opens a user's turn itself, which only this path can: use a host that has it."
        if probe.completes
        else ""
    )
    raise RecipeError(f"endpoint: the host refuses every request to {path} ({said}).{why}")


async def _prompt_tokens(ask: Ask, profile: HostProfile, probe: HostProbe) -> tuple[HostProfile, list[str]]:
    """A profile with which the host sees the prompt as the template writes it."""
    counted = await _count(ask, profile, probe)
    if probe.num_tokens is None or counted in (None, 0, probe.num_tokens):
        unknown = ["The host does not say how many tokens a prompt has: whether it adds any is not known."]
        return profile, unknown if not counted else []
    if counted == probe.num_tokens + 1 and probe.bos and probe.prefix.startswith(probe.bos):
        stripped = replace(profile, adds_bos=True)
        if await _count(ask, stripped, probe) == probe.num_tokens:
            return stripped, ["The host adds a second BOS to prompts: ours is left out."]
    as_ids = replace(profile, takes_ids=True)
    try:
        if await _count(ask, as_ids, probe) == probe.num_tokens:
            more = (
                "a second BOS"
                if counted == probe.num_tokens + 1
                else f"{counted - probe.num_tokens:+d} tokens"
            )
            return as_ids, [f"The host adds to the text of prompts ({more}): they are sent as token ids."]
    except CallFailed:
        pass
    if counted == probe.num_tokens + 1:
        return profile, [
            "The host adds a second BOS to prompts, and takes no token ids: every prompt has two."
        ]
    raise RecipeError(
        f"endpoint: the host changes prompts sent to /completions: it counts {counted} tokens where the prompt has "
        f"{probe.num_tokens}. It applies a chat template of its own, or the recipe's `tokenizer` is not the model's. Use a host "
        "that completes prompts as they are (vLLM, SGLang, llama.cpp's server do), or name the model's tokenizer."
    )


async def _count(ask: Ask, profile: HostProfile, probe: HostProbe) -> int:
    call = replace(_call(probe, 0, prompt=probe.prefix), sampling=Sampling(0.0, 1))
    return (await ask(profile, call)).prompt_tokens


async def _ignores_stop(ask: Ask, profile: HostProfile, reply: str) -> bool:
    """Whether a stop out of the middle of a known reply does not end it."""
    third = len(reply) // 3
    stop = reply[third : third + 4]
    if len(reply) < 8 or not stop.strip():
        return False
    again = await ask(profile, Call("check", "stop", _GREEDY, 0, prompt=_PROBES[0], stops=(stop,)))
    return stop in again.text and not again.text.endswith(stop)  # some hosts stop, and write the stop too
