"""A budget in requests, tokens and money that is never passed.

Before a request is sent, its prompt and the most tokens that it may answer are reserved; what it did not use is given back. A
request whose answer was lost on the way keeps its reservation: the host may have billed it. Money is counted in whole millionths
of a millionth, so that no rounding passes a limit.
"""

from __future__ import annotations

from dataclasses import dataclass

from datamix.synthesis.answer_ledger import Spent

_UNITS = 10**12  # of one unit of money; a price per million tokens gives whole ones a token


@dataclass(frozen=True)
class Limits:
    """What may be spent; None is no limit."""

    requests: int | None = None
    tokens: int | None = None
    money: float | None = None
    prompt_price: float = 0.0  # per million tokens
    completion_price: float = 0.0

    def cost(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Money for some tokens, in 10^-12."""
        prices = round(self.prompt_price * 10**6), round(self.completion_price * 10**6)
        return prompt_tokens * prices[0] + completion_tokens * prices[1]

    def money_of(self, prompt_tokens: float, completion_tokens: float) -> float:
        return (prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) / 10**6


@dataclass(frozen=True)
class Reservation:
    """What one request may use at most."""

    prompt_tokens: int
    completion_tokens: int
    surplus: int  # of the prompt's: what the host is known to add


class Budget:
    """What is spent and reserved, against the limits."""

    def __init__(self, limits: Limits, spent: Spent) -> None:
        self.limits = limits
        self.requests = spent.requests
        self._prompt, self._completion = spent.prompt_tokens, spent.completion_tokens
        self._open = [0, 0]
        self._surplus = 0  # tokens that the host counts in a prompt beyond ours

    @property
    def tokens(self) -> int:
        """Spent and reserved."""
        return self._prompt + self._completion

    @property
    def money(self) -> float:
        return self.limits.cost(self._prompt, self._completion) / _UNITS

    @property
    def settled(self) -> tuple[int, int]:
        """Prompt and completion tokens without the reservations of this process that are open."""
        return self._prompt - self._open[0], self._completion - self._open[1]

    def reserve(self, prompt_tokens: int, max_tokens: int) -> Reservation | None:
        """Reserve a request; None where that would pass a limit. What is reserved goes back by ``settle``."""
        prompt = prompt_tokens + self._surplus
        limits, after = self.limits, self.tokens + prompt + max_tokens
        cost = limits.cost(self._prompt + prompt, self._completion + max_tokens)
        if (
            (limits.requests is not None and self.requests >= limits.requests)
            or (limits.tokens is not None and after > limits.tokens)
            or (limits.money is not None and cost > round(limits.money * _UNITS))
        ):
            return None
        self.requests += 1
        self._prompt += prompt
        self._completion += max_tokens
        self._open = [self._open[0] + prompt, self._open[1] + max_tokens]
        return Reservation(prompt, max_tokens, self._surplus)

    def settle(self, reserved: Reservation, prompt_tokens: int, completion_tokens: int) -> None:
        """Put what was used in the place of what was reserved; a host that counts more is believed from then on."""
        self._prompt += prompt_tokens - reserved.prompt_tokens
        self._completion += completion_tokens - reserved.completion_tokens
        self._open = [self._open[0] - reserved.prompt_tokens, self._open[1] - reserved.completion_tokens]
        more = prompt_tokens - reserved.prompt_tokens
        if more > 0:
            self._surplus = max(self._surplus, reserved.surplus + more)
