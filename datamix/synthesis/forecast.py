"""What a job will cost in the end, from the records that are done.

Only records of an unbroken beginning count: those that end first are the short ones, and a mean over them is too low. What is to come is
scaled by what each record was expected to cost (the length of the text that is rewritten, for example), and by the share of records that
pass the filters where a number of passing records is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from datamix.synthesis.calls import Item


@dataclass(frozen=True)
class Forecast:
    """Totals at the end of the job."""

    requests: float
    prompt_tokens: float
    completion_tokens: float
    num_items: int  # that the forecast is made from
    pass_share: float


def beginning(items: Sequence[Item], done: Mapping[str, tuple[int, int, int]]) -> list[Item]:
    """The items up to the first that is not done."""
    return [*items[: next((n for n, item in enumerate(items) if item.index not in done), len(items))]]


def forecast(
    known: Sequence[Item],
    done: Mapping[str, tuple[int, int, int]],
    num_passed: int,
    to_come: Sequence[Item] | int,
) -> Forecast | None:
    """The totals, from the items ``known`` to be done; ``to_come``: the other items, or how many records must still pass."""
    if not known or (isinstance(to_come, int) and not num_passed):
        return None
    costs = [done[item.index] for item in known]
    sums = [float(sum(cost[n] for cost in costs)) for n in range(3)]
    if isinstance(to_come, int):
        factor = 1 + to_come / num_passed
    else:
        factor = 1 + sum(item.expected for item in to_come) / max(1e-9, sum(item.expected for item in known))
    requests, prompt_tokens, completion_tokens = (value * factor for value in sums)
    return Forecast(requests, prompt_tokens, completion_tokens, len(known), num_passed / len(known))
