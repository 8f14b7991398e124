"""Which mixtures to run: candidates around a prior, within caps, each next one far from all before it.

Candidates are Dirichlet draws around the UniMax weights tempered by a root, of strengths from scattered to concentrated (as RegMix,
arXiv 2407.01492, and Olmix, arXiv 2602.12237); with two sides every percent of a ladder. The choice is greedy maximin in the square
roots of the shares, where a step from 0 to 1 % is as long as one from 50 to 64 %. Greedy choices are nested: more runs keep the first ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datamix.fitting.laws import Floats

_NUM_CANDIDATES = 4096
_STRENGTHS = (0.3, 8.0)  # of the Dirichlet, times the number of sides


@dataclass(frozen=True)
class Space:
    """What may be proposed: shares of sides, each shared inside by fixed ``parts``."""

    prior: Floats  # [num_sides]
    caps: Floats  # [num_sides]
    least: Floats  # [num_sides]: a smaller share becomes 0
    parts: tuple[Floats, ...]


def choose(space: Space, first: Sequence[Floats], num_runs: int, seed: int) -> list[Floats]:
    """``num_runs`` mixtures ``[num_sources]`` beside ``first``; deterministic."""
    sides = _ladder(space) if len(space.prior) == 2 else _draws(space, seed)
    candidates = np.array(
        [np.concatenate([w * p for w, p in zip(row, space.parts, strict=True)]) for row in sides]
    )
    taken = [np.asarray(mixture) for mixture in first]
    distance = np.full(len(candidates), np.inf)
    for mixture in taken:
        distance = np.minimum(distance, _distance(candidates, mixture))
    for _ in range(num_runs):
        best = int(
            distance.argmax()
        )  # the same one again where the ladder is used up: a repeat tells the noise
        taken.append(candidates[best])
        distance = np.minimum(distance, _distance(candidates, candidates[best]))
    return taken[len(first) :]


def _distance(candidates: Floats, mixture: Floats) -> Floats:
    squares: Floats = ((np.sqrt(candidates) - np.sqrt(mixture)) ** 2).sum(axis=1)
    return squares


def _ladder(space: Space) -> Floats:
    """Every percent of the first side that the caps of both allow."""
    share = np.linspace(0, 1, 101)
    share = np.where(share < space.least[0], 0.0, np.where(1 - share < space.least[1], 1.0, share))
    allowed = (share <= space.caps[0] + 1e-9) & (1 - share <= space.caps[1] + 1e-9)
    share = np.unique(share[allowed] if allowed.any() else np.array([space.prior[0]]))
    return np.stack([share, 1 - share], axis=1)


def _draws(space: Space, seed: int) -> Floats:
    rng = np.random.default_rng(seed)
    prior = np.sqrt(space.prior / space.prior.sum())
    prior /= prior.sum()
    num = len(prior)
    low, high = np.log(_STRENGTHS)
    strengths = np.exp(rng.uniform(low, high, _NUM_CANDIDATES))
    gammas = rng.standard_gamma(strengths[:, None] * num * prior[None]) + 1e-300
    return np.array([_capped(row / row.sum(), space) for row in gammas])


def _capped(shares: Floats, space: Space) -> Floats:
    """Shares under the caps, none between 0 and the least; what is cut goes to the others in proportion."""
    shares = np.where(shares < space.least, 0.0, shares)
    if not shares.any():
        shares = space.prior.copy()
    shares = shares / shares.sum()
    capped = np.zeros(len(shares), bool)
    while (shares > space.caps + 1e-12).any():
        capped |= shares > space.caps + 1e-12
        shares = np.where(capped, space.caps, shares)
        others = ~capped & (shares > 0)
        left = 1 - space.caps[capped].sum()
        if others.any():
            shares = np.where(others, shares * left / shares[others].sum(), shares)
        else:  # all that are in it are at their caps: the absent ones help, as far as theirs go
            room = np.where(capped, 0.0, space.caps)
            shares = shares + room * max(0.0, left) / max(float(room.sum()), 1e-12)
            break
    rounded = np.round(shares, 4)
    rounded[int(rounded.argmax())] += 1 - rounded.sum()
    return rounded
