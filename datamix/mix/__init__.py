"""Mixing: quotas, weights, the schedule and its recount. Integers only: this room never sees a token."""

from datamix.mix.advice import ladder
from datamix.mix.loss_weights import (
    LossNorm,
    effective_cost,
    effective_shares,
    mean_loss_tokens,
    row_weights,
    scaled_rows,
    shares,
)
from datamix.mix.passes import caps, epoch_order
from datamix.mix.quota import Available, LadderStep, MixStage, Quota, Scarcity, StagePlan, quantity
from datamix.mix.schedule import Deviation, deviation, schedule
from datamix.mix.solve import TooFewEpochs, solve
from datamix.mix.weights import MixGroup, replay, source_weights, stage_weights, vary

__all__ = [
    "Available",
    "Deviation",
    "LadderStep",
    "LossNorm",
    "MixGroup",
    "MixStage",
    "Quota",
    "Scarcity",
    "StagePlan",
    "TooFewEpochs",
    "caps",
    "deviation",
    "effective_cost",
    "effective_shares",
    "epoch_order",
    "ladder",
    "mean_loss_tokens",
    "quantity",
    "replay",
    "row_weights",
    "scaled_rows",
    "schedule",
    "shares",
    "solve",
    "source_weights",
    "stage_weights",
    "vary",
]
