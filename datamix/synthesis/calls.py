"""What is asked of a model and what it answers, as values.

A ``Call`` is one request in full: its ``key`` is the digest of everything that can change the answer, so the same request is
recognised in every later run, and its seed is a hash of the job and the index, so a retry is the same request. What differs
between hosts (a BOS that the host adds by itself, parameters that it refuses) is no part of it: ``host`` adapts what is sent.

A kind of synthesis is a ``Script``: a generator that yields calls, is sent their answers, and returns drafts of records. It is a
pure function of the answers: run again over stored answers it gives the same records and buys nothing.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from datamix.core.hashing import digest

_SEED_BITS = 31  # llama.cpp takes 32, others 63


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    temperature: float
    max_tokens: int
    top_p: float = 1.0


@dataclass(frozen=True)
class Call:
    """One request: a prompt to continue, or messages to answer."""

    stage: str  # instruction, answer, rewrite, ...
    index: str  # of the record that it belongs to
    sampling: Sampling
    seed: int
    prompt: str | None = None  # for /v1/completions
    messages: tuple[tuple[str, str], ...] = ()  # (role, content), for /v1/chat/completions
    stops: tuple[str, ...] = ()
    logprobs: bool = False
    num_prompt_tokens: int = 0  # at most; for the budget, and no part of the key

    def key(self, model: str) -> str:
        """32 hex digits over everything that is asked of ``model``."""
        asked = [self.prompt, self.messages, self.sampling, self.stops, self.seed, self.logprobs]
        return digest("call", model, *asked)[:32]


@dataclass(frozen=True)
class Answer:
    """What a model answered, or why there is no answer."""

    text: str
    finish: str  # stop, length, or what the host says; "error" where the host refuses this request for good
    prompt_tokens: int
    completion_tokens: int
    model: str = ""  # as the host names it
    logprob: float | None = None  # mean over the tokens, nats

    @property
    def is_whole(self) -> bool:
        """Whether the model ended it by itself."""
        return self.finish == "stop"


def seed_of(job: str, index: str, stage: str, sample: int = 0) -> int:
    """The seed of one request, by name."""
    return int(digest("seed", job, index, stage, sample)[:16], 16) >> (64 - _SEED_BITS)


@dataclass(frozen=True)
class Draft:
    """A record as a script leaves it: messages and what is known of them; or why there is none."""

    index: str
    messages: tuple[Mapping[str, Any], ...] = ()
    reason: str | None = None  # of a record that is removed: empty, unfinished, ...
    detail: str = ""  # for people: what was read
    prompt_id: str = ""
    rejected: tuple[Mapping[str, Any], ...] = ()  # of a pair: the answer that is not preferred
    margin: float | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Any, ...] = ()


Script = Generator[list[Call], list[Answer], list[Draft]]


@dataclass(frozen=True)
class Item:
    """One script to run."""

    index: str
    number: int  # its place among all
    prefix: str  # items of equal prefix are asked one after another: hosts keep the state of a prefix
    expected: float  # about how much its answers cost, in any unit: for the estimate
    start: Any  # () -> Script
