"""Where the inputs of a finished set are now: its manifest names them without their places.

A manifest that named absolute paths would have other bytes in another folder. The cache notes the places of each set; the
recipe file knows them too, and so does the folder of the recipe where every path is below it. Cost: one listing of the inputs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamix.core.errors import DatamixError
from datamix.pipeline.built_sets import default_cache, write_file
from datamix.read import find, local_path, name_files
from datamix.recipe import Recipe
from datamix.recipe.parts import HELD_OUT


@dataclass(frozen=True)
class InputPlaces:
    """A set's recipe with its real paths, and where each of the manifest's inputs is."""

    recipe: Recipe
    paths: tuple[str | None, ...]  # None: not found, or at an address (``://``)

    @property
    def base(self) -> Path:
        return Path(self.recipe.base)


def save_places(cache: Path, key: str, recipe: Recipe) -> None:
    """Note the recipe of a set with the places of its inputs; its folder relative to the cache, so both can be moved."""
    entry = {"recipe": recipe.with_places(), "base": os.path.relpath(recipe.base, cache)}
    text = json.dumps(entry, ensure_ascii=False)  # the order of sources decides who keeps a duplicate
    write_file(cache, cache / "sets" / f"{key}.inputs", text)


def input_places(out: Path, manifest: dict[str, Any], cache: Path | None = None) -> InputPlaces:
    """Where the inputs of a set are: by what the cache notes, by a recipe file in this folder or one above OUT, or by one of
    these folders as the recipe's; the first that has all, else the one that has the most."""
    best: InputPlaces | None = None
    for recipe in _candidates(out, manifest, cache or default_cache(out)):
        places = InputPlaces(recipe, _found(recipe, manifest["inputs"]))
        if best is None or places.paths.count(None) < best.paths.count(None):
            best = places
        if not any(_is_missing(e, p) for e, p in zip(manifest["inputs"], places.paths, strict=True)):
            return places
    assert best is not None
    return best


def missing_inputs(manifest: dict[str, Any], places: InputPlaces) -> list[str]:
    """Names of the local inputs that were not found."""
    return [e["path"] for e, p in zip(manifest["inputs"], places.paths, strict=True) if _is_missing(e, p)]


def _is_missing(entry: dict[str, Any], path: str | None) -> bool:
    return path is None and "://" not in entry["path"]


def _candidates(out: Path, manifest: dict[str, Any], cache: Path) -> Iterator[Recipe]:
    """Recipes of the set, each with its folder, the likeliest first."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        noted = json.loads((cache / "sets" / f"{manifest['key']}.inputs").read_bytes())
        recipe = Recipe.model_validate(noted["recipe"])
        if recipe.sha256() == manifest["recipe_sha256"]:
            yield _at(recipe, cache / noted["base"])
    folders = [Path(), *out.absolute().parents, out]
    for folder in folders:
        for file in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
            with suppress(DatamixError, OSError, ValueError):
                recipe = Recipe.read(file)
                if recipe.sha256() == manifest["recipe_sha256"]:
                    yield recipe
    for folder in folders:
        yield _at(Recipe.model_validate(manifest["recipe"]), folder)


def _at(recipe: Recipe, base: Path) -> Recipe:
    recipe._base = os.path.normpath(base)
    return recipe


def _found(recipe: Recipe, entries: Sequence[dict[str, Any]]) -> tuple[str | None, ...]:
    """The path of each entry, where it is a file."""
    held_out = {HELD_OUT: recipe.validation.path} if recipe.validation else {}
    known: dict[tuple[str, str], str] = {}
    for source, paths in {n: s.path for n, s in recipe.sources.items()}.items() | held_out.items():
        local = [path for path in paths if "://" not in local_path(path)]
        with suppress(DatamixError, OSError):
            named = name_files(find(local, recipe.base), local, recipe.base)
            # 0.1 named every file by its place seen from the recipe
            known |= {(source, os.path.relpath(path, recipe.base)): path for path, _ in named}
            known |= {(source, label): local_path(path) for path, label in named}
    paths_of = (known.get((e["source"], e["path"])) for e in entries)
    return tuple(path if path is not None and os.path.isfile(path) else None for path in paths_of)
