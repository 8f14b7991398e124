"""datamix: raw corpora in, a verified training set out, with mixture ratios that are exact and re-counted.

import datamix

recipe = datamix.Recipe.read("recipe.yaml")
datamix.build(recipe, "out")
rows = datamix.open("out")
"""

from __future__ import annotations

from typing import Any

__version__ = "0.2.0"
__all__ = ["Recipe", "__version__", "build", "dedupe", "diff", "open", "plan", "push", "report", "verify"]

_PLACES = {  # imported when they are first asked for, so that `datamix --help` is instant
    "Recipe": ("datamix.recipe", "Recipe"),
    "build": ("datamix.commands.api", "build"),
    "dedupe": ("datamix.dedup", "dedupe"),
    "diff": ("datamix.commands.api", "diff"),
    "open": ("datamix.pipeline.built_sets", "open_any"),
    "plan": ("datamix.commands.api", "plan"),
    "push": ("datamix.commands.api", "push"),
    "report": ("datamix.commands.api", "report"),
    "verify": ("datamix.commands.api", "verify"),
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'datamix' has no attribute {name!r}")
    import importlib

    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)
