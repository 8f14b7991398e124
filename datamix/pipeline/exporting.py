"""Write a set that is already built in further formats: the same tasks as a build's last phase, resumable and parallel.

The rows are made again from the cache, in about the time of copying them. Where the cache was deleted, running the build again
brings it back; nothing of the set changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamix.core.errors import RecipeError
from datamix.core.set_files import check_listed
from datamix.pipeline.building import BUILDING, hold_folder, remove_building, staging
from datamix.pipeline.built_sets import built_set
from datamix.pipeline.engine import LocalEngine, default_workers
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
from datamix.pipeline.write_shards import (
    FormatChoice,
    commands,
    further_formats,
    link,
    listed_exports,
    shard_tasks,
)
from datamix.recipe.strict_yaml import scalar


def parse_format(text: str) -> FormatChoice:
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
    formats: Sequence[FormatChoice],
    cache: Path | None,
    workers: int = 0,
    screen: Screen | None = None,
) -> list[dict[str, Any]]:
    """Add formats to a finished set; return the new entries of its ``outputs``.

    Raises RecipeError for an unknown format or option, DataError where the cache no longer holds the rows.
    """
    finished_manifest(out)
    screen = screen or Screen(quiet=True)
    for name, _ in formats:
        check_folder(out / ("train" if name == "parquet" else name))
    with hold_folder(out):
        manifest = finished_manifest(out)  # another export may have ended meanwhile
        splits = built_set(out, manifest, cache).splits
        if not manifest.get("virtual"):
            formats = [f for f in formats if f[0] != "parquet"]
        context = BuildContext(out / BUILDING, LocalEngine(workers or default_workers()), screen)
        try:
            tasks = shard_tasks(splits, formats, manifest["key"], out / BUILDING)
            done = list(zip(tasks, context.run("write", tasks), strict=True))
        finally:
            context.engine.close()
        staged = staging(out)
        listed = link(staged, done)
        new, names = {entry["path"] for entry in listed}, {name for name, _ in formats} - {"parquet"}

        def is_replaced(entry: dict[str, Any]) -> bool:
            path, format_ = str(entry["path"]), entry["format"]
            # in the folder of its format: ``rejects/*.jsonl`` are no export to ``jsonl``
            return path in new or (format_ in names and path.split("/")[0] == format_)

        replaced = [e for e in manifest["outputs"] if is_replaced(e)]
        rest = [e for e in manifest["outputs"] if not is_replaced(e)]
        without = manifest | {"outputs": rest}
        manifest["outputs"] = sorted([*rest, *listed], key=lambda entry: str(entry["path"]))
        manifest["commands"] = manifest.get("commands", {}) | commands(formats, splits["train"].info)
        manifest["exports"] = listed_exports(
            [*(f for f in further_formats(manifest) if f[0] not in names), *formats]
        )
        staying = {entry["path"] for entry in rest}
        left = {name: digests for name, digests in leftover_files(out).items() if name not in staying}
        switch(out, staged, both(left, listed_files(replaced)), (without, manifest), screen.say)
        remove_building(out)
    return listed


def finished_manifest(out: Path) -> dict[str, Any]:
    """The manifest of a finished set. Raises RecipeError where OUT holds none."""
    manifest = read_set(out)
    if manifest is None:
        why = "its manifest.json is not one of datamix" if (out / MANIFEST).exists() else "no manifest.json"
        raise RecipeError(
            f"{out} holds no finished set ({why}). Build it first: `datamix build RECIPE -o {out}`."
        )
    check_listed(out, manifest)
    return manifest
