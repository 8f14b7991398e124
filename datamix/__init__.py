"""datamix: raw corpora in, a verified training set out, with mixture ratios that are exact and re-counted.

import datamix

recipe = datamix.Recipe.read("recipe.yaml")
datamix.build(recipe, "out")
rows = datamix.open("out")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamix.commands.api import (
        build,
        diff,
        exclude,
        export,
        init,
        inspect,
        plan,
        propose,
        push,
        recommend,
        report,
        sweep,
        synth,
        trace,
        verify,
    )
    from datamix.dedup import dedupe
    from datamix.jobs.loss_callback import LossCallback
    from datamix.pipeline.built_sets import open_any as open
    from datamix.recipe import Recipe
    from datamix.recipe.synth_recipe import SynthRecipe

__version__ = "0.2.0"
__all__ = [
    "LossCallback",
    "Recipe",
    "SynthRecipe",
    "__version__",
    "build",
    "dedupe",
    "diff",
    "exclude",
    "export",
    "init",
    "inspect",
    "open",
    "plan",
    "propose",
    "push",
    "recommend",
    "report",
    "sweep",
    "synth",
    "trace",
    "verify",
]

_PLACES = {  # imported when they are first asked for, so that `datamix --help` is instant
    "LossCallback": ("datamix.jobs.loss_callback", "LossCallback"),
    "Recipe": ("datamix.recipe", "Recipe"),
    "build": ("datamix.commands.api", "build"),
    "dedupe": ("datamix.dedup", "dedupe"),
    "diff": ("datamix.commands.api", "diff"),
    "exclude": ("datamix.commands.api", "exclude"),
    "export": ("datamix.commands.api", "export"),
    "init": ("datamix.commands.api", "init"),
    "inspect": ("datamix.commands.api", "inspect"),
    "open": ("datamix.pipeline.built_sets", "open_any"),
    "plan": ("datamix.commands.api", "plan"),
    "propose": ("datamix.commands.api", "propose"),
    "recommend": ("datamix.commands.api", "recommend"),
    "push": ("datamix.commands.api", "push"),
    "report": ("datamix.commands.api", "report"),
    "sweep": ("datamix.commands.api", "sweep"),
    "SynthRecipe": ("datamix.recipe.synth_recipe", "SynthRecipe"),
    "synth": ("datamix.commands.api", "synth"),
    "trace": ("datamix.commands.api", "trace"),
    "verify": ("datamix.commands.api", "verify"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'datamix' has no attribute {name!r}")
    import importlib

    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
