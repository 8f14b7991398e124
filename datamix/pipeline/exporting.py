"""Write a set that is already built in further formats: the same tasks as a build's last phase, resumable and parallel.

The rows are made again from the cache, in about the time of copying them. Where the cache is gone, running the build again
brings it back; nothing of the set changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamix.core.errors import RecipeError
from datamix.pipeline import outputs
from datamix.pipeline.building import BUILDING, hold_folder, remove_building, staging
from datamix.pipeline.engine import LocalEngine, default_workers
from datamix.pipeline.opening import built_set
from datamix.pipeline.out_folder import (
    MANIFEST,
    both,
    check_folder,
    leftover_files,
    listed_files,
    read_set,
    switch,
)
from datamix.pipeline.prepare_sources import BuildContext
from datamix.pipeline.progress import Screen
from datamix.recipe.strict_yaml import scalar


def parse_format(text: str) -> outputs.FormatChoice:
    """``megatron:layout=blocks,shard_bytes=1000`` -> its name and options. Raises RecipeError."""
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            raise RecipeError(f"--to {text}: options are key=value, such as megatron:layout=blocks.")
        options[key.strip()] = scalar(value.strip())
    return name.strip(), tuple(sorted(options.items()))


def export(
    out: Path,
    formats: Sequence[outputs.FormatChoice],
    cache: Path | None,
    workers: int = 0,
    screen: Screen | None = None,
) -> list[dict[str, Any]]:
    """Add formats to a finished set; return the new entries of its ``outputs``.

    Raises RecipeError for an unknown format or option, DataError where the rows are gone.
    """
    _finished(out)
    for name, _ in formats:
        check_folder(out / ("train" if name == "parquet" else name))
    with hold_folder(out):
        manifest = _finished(out)  # another export may have ended meanwhile
        splits = built_set(out, manifest, cache).splits
        there = {entry["format"] for entry in manifest["outputs"]}
        if not manifest.get("virtual"):
            formats = [f for f in formats if f[0] != "parquet"]
        again = [name for name, _ in formats if name in there and name != "parquet"]
        context = BuildContext(
            out / BUILDING, LocalEngine(workers or default_workers()), screen or Screen(quiet=True)
        )
        try:
            tasks = outputs.shard_tasks(splits, formats, manifest["key"], out / BUILDING)
            done = list(zip(tasks, context.run("write", tasks), strict=True))
        finally:
            context.engine.close()
        staged = staging(out)
        listed = outputs.link(staged, done) + outputs.finish(staged, done)
        new = {entry["path"] for entry in listed}
        replaced = [e for e in manifest["outputs"] if e["path"] in new or _is_of(e, again)]
        rest = [e for e in manifest["outputs"] if e not in replaced]
        without = manifest | {"outputs": rest}
        manifest["outputs"] = sorted([*rest, *listed], key=lambda entry: str(entry["path"]))
        manifest["commands"] = manifest.get("commands", {}) | outputs.commands(formats, splits["train"].info)
        staying = {entry["path"] for entry in rest}
        left = {name: digests for name, digests in leftover_files(out).items() if name not in staying}
        owned = both(left, listed_files(replaced))
        switch(out, staged, owned, (without, manifest), (screen or Screen(quiet=True)).say)
        remove_building(out)
    return listed


def _finished(out: Path) -> dict[str, Any]:
    manifest = read_set(out)
    if manifest is None:
        why = "its manifest.json is not one of datamix" if (out / MANIFEST).exists() else "no manifest.json"
        raise RecipeError(
            f"{out} holds no finished set ({why}). Build it first: `datamix build RECIPE -o {out}`."
        )
    return manifest


def _is_of(entry: dict[str, Any], formats: Sequence[str]) -> bool:
    """Whether a file lies in the folder of one of the formats; ``rejects/*.jsonl`` are no export to ``jsonl``."""
    return entry["format"] in formats and str(entry["path"]).split("/")[0] == entry["format"]
