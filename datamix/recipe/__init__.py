"""The recipe: typed, every error told at once, and put in the words of the rooms."""

from datamix.recipe.model import Recipe
from datamix.recipe.parts import HELD_OUT, CleanStep, Epochs, Temperature, Weighed

__all__ = ["HELD_OUT", "CleanStep", "Epochs", "Recipe", "Temperature", "Weighed"]
