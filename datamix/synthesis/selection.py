"""Which records stay where more passed the filters than are asked for: in the proportions of a reference, never the longest.

Records are put into strata: where they come from (a system text, a source), script, and the length of the answer by quartiles of the
reference. Each stratum gets its share of the reference (of the records themselves where there is none) by largest remainders, and
takes its first ones. What a stratum lacks goes to the others in proportion.

Why not the longest: it raises the share of replay in the loss; and a length that the reference does not have is a style to unlearn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from datamix.synthesis.text_checks import script_of

Stratum = tuple[Hashable, str, int]


def strata(
    categories: Sequence[Hashable], texts: Sequence[str], lengths: Sequence[int], borders: Sequence[float]
) -> list[Stratum]:
    """The stratum of each record: category, script, quartile of length."""
    bins = np.searchsorted(np.asarray(borders, np.float64), np.asarray(lengths, np.float64), "right").tolist()
    return [(c, script_of(t), b) for c, t, b in zip(categories, texts, bins, strict=True)]


def quartiles(lengths: Sequence[int]) -> list[float]:
    """The three borders between quarters."""
    return [float(q) for q in np.quantile(lengths, [0.25, 0.5, 0.75])] if len(lengths) else []


def select(records: Sequence[Stratum], size: int, reference: Sequence[Stratum] = ()) -> list[int]:
    """The places of ``size`` records, in order."""
    if len(records) <= size:
        return list(range(len(records)))
    places: dict[Stratum, list[int]] = {}
    for place, stratum in enumerate(records):
        places.setdefault(stratum, []).append(place)
    wanted = Counter(stratum for stratum in reference if stratum in places) or Counter(records)
    chosen: list[int] = []
    taken: Counter[Stratum] = Counter()
    while len(chosen) < size:
        open_strata = {s: w for s, w in wanted.items() if taken[s] < len(places[s])}
        if not open_strata:  # the reference has no more: the others, in order
            rest = sorted(set(range(len(records))) - set(chosen))
            chosen += rest[: size - len(chosen)]
            break
        for stratum, count in _shares(open_strata, size - len(chosen)).items():
            count = min(count, len(places[stratum]) - taken[stratum])
            chosen += places[stratum][taken[stratum] : taken[stratum] + count]
            taken[stratum] += count
    return sorted(chosen)


def _shares(weights: dict[Stratum, int], total: int) -> dict[Stratum, int]:
    """``total`` in proportion to the weights, by largest remainders; ties by name."""
    whole = sum(weights.values())
    exact = {s: total * w / whole for s, w in weights.items()}
    counts = {s: int(x) for s, x in exact.items()}
    ranked = sorted(exact, key=lambda s: (counts[s] - exact[s], str(s)))
    for stratum in ranked[: total - sum(counts.values())]:
        counts[stratum] += 1
    return counts
