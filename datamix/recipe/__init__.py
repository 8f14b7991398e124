"""The recipe: typed, every error reported at once; its strict YAML, its errors in words, the published schemas."""

from datamix.recipe.mixture import Epochs, Temperature, Weighed
from datamix.recipe.model import Recipe
from datamix.recipe.parts import HELD_OUT, CleanStep

__all__ = ["HELD_OUT", "CleanStep", "Epochs", "Recipe", "Temperature", "Weighed"]
