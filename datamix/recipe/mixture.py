"""The mixture of a recipe: unit, size, caps and rules, stages, replay, and what the loss is averaged over."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from datamix.recipe.parts import Count, Model, Name, NumEpochs, Share, StageWeight, Weight


class Epochs(Model):
    """A size given as "this source so many times"."""

    epochs: Annotated[dict[str, NumEpochs], Field(min_length=1, max_length=1)]
    """One source and how often it is used."""


class Temperature(Model):
    temperature: Weight
    """Weights are size^(1/t)."""


class Stage(Model):
    name: Name
    """Name of the stage."""
    share: Share | None = None
    """Share of the whole."""
    size: Count | None = None
    """Size in the mixture's unit, instead of `share`."""
    weights: dict[str, StageWeight] | None = None
    """Weights in this stage; absent: the sources' weights."""
    ramp: Literal["linear"] | None = None
    """Move evenly from the previous weights to these."""


class Replay(Model):
    of: str
    """A source or group."""
    share: Annotated[float, Field(gt=0, lt=1)]
    """Its share of the finished mixture."""


LossNorm = Literal["token", "example"]


class Weighed(Model):
    """Rows of a column ``weight``, by which a trainer that averages the loss over one counts as if over the other."""

    trainer: LossNorm
    """What the trainer averages over."""
    wanted: LossNorm
    """What it should count as."""

    @model_validator(mode="after")
    def _differ(self) -> Weighed:
        if self.trainer == self.wanted:
            raise ValueError(f"weighs nothing where both are the same; write loss_norm: {self.trainer}")
        return self


class Mix(Model):
    unit: Literal["records", "tokens", "loss_tokens"] | None = None
    """What weights and sizes count; the default depends on the kind."""
    size: Count | Epochs | None = None
    """Size of the set in that unit, or so many epochs of a source; absent: the most that the caps allow."""
    on_short: Literal["error", "shrink", "reweigh"] = "error"
    """What happens when the caps cannot give the size."""
    weights: Literal["proportional", "unimax"] | Temperature | None = None
    """Weights by rule."""
    stages: tuple[Stage, ...] = ()
    """Parts of training with their own weights."""
    replay: Replay | None = None
    """A share of the finished mixture for one source or group, instead of weights."""
    loss_norm: LossNorm | Weighed | None = None
    """How the trainer averages the loss; as a map, also writes a `weight` per row."""

    @model_validator(mode="before")
    @classmethod
    def _with_names(cls, value: Any) -> Any:
        """A stage without a name is called by its number."""
        stages = value.get("stages") if isinstance(value, dict) else None
        if not isinstance(stages, list | tuple):
            return value
        named = [
            {"name": f"stage-{n}", **stage} if isinstance(stage, dict) else stage
            for n, stage in enumerate(stages, 1)
        ]
        return {**value, "stages": named}

    @model_validator(mode="after")
    def _stages_add_up(self) -> Mix:
        shares = [s.share for s in self.stages]
        if any((s.share is None) == (s.size is None) for s in self.stages):
            raise ValueError("each stage takes either share or size")
        if all(x is not None for x in shares) and shares and abs(sum(x or 0 for x in shares) - 1) > 1e-9:
            raise ValueError(f"the stages' shares sum to {sum(x or 0 for x in shares):g}, not 1")
        if any(x is None for x in shares) and any(x is not None for x in shares):
            raise ValueError("stages are sized either all by share or all by size")
        names = [s.name for s in self.stages]
        if len(set(names)) != len(names):
            raise ValueError("two stages have the same name")
        if self.stages and self.stages[0].ramp:
            raise ValueError("the first stage has nothing to ramp from")
        return self

    @property
    def averaged_over(self) -> LossNorm | None:
        """What the loss is averaged over in the end, the rows' weights counted."""
        return self.loss_norm.wanted if isinstance(self.loss_norm, Weighed) else self.loss_norm
