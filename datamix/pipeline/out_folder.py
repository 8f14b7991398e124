"""The folder OUT: which of its files are ours, and how a new set takes the place of an older one.

Ours are the files that OUT's manifest lists, as long as their content is what it lists, and ``.building`` where it carries
our marker. Nothing else is read as an input, replaced or removed, by no option. A new set is completed in ``.building/new``
and moved into place file by file: ``.building/owned.json`` names old and new files first, then the old manifest is withdrawn,
and the new one is moved last. So a process killed anywhere leaves what the next run recognises and completes.

Cost: a file whose size, times and inode are those recorded in the cache is trusted; any other file of ours is hashed once
(1 to 2 GB/s) before it is replaced or called whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache as remember
from pathlib import Path
from typing import Any

import jsonschema_rs

from datamix.core.errors import MachineError, RecipeError
from datamix.core.hashing import digest, file_sha256
from datamix.core.machine import files_below
from datamix.pipeline.building import BUILDING, OWNED, carries_marker, is_marked
from datamix.pipeline.built_sets import read_manifest, write_file
from datamix.pipeline.store import check_cache, sync
from datamix.recipe import Recipe
from datamix.recipe.parts import HELD_OUT
from datamix.recipe.schemas import schema_text

MANIFEST = "manifest.json"
FAILED = ".verify-failed"  # left by verify where files are broken: the next build reads every file
_FAILED_TEXT = "datamix verify found broken files here; the next build of this set reads and repairs them.\n"
_FOLDERS = ("train", "validation", "rejects", "removed", "tokenizer")
_FILES = (
    MANIFEST,
    "report.html",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
    "tokenizer/chat_template.jinja",
)
_READ_BY_PATTERN = ("train", "validation")  # trainers read `*.parquet` there, whoever wrote them

State = tuple[int, int, int, int]  # size, mtime_ns, ctime_ns, inode
Owned = dict[str, list[str]]  # path below OUT -> digests that we may have written there


@remember
def _validator() -> Any:
    return jsonschema_rs.validator_for(json.loads(schema_text("manifest")))


def read_set(out: Path) -> dict[str, Any] | None:
    """The manifest of the set in OUT where it follows our schema, else None. Raises as ``read_manifest`` does."""
    manifest = read_manifest(out)
    return manifest if manifest is not None and _validator().is_valid(manifest) else None


def owned_files(out: Path) -> Owned:
    """The files of OUT that datamix may replace: those of its manifest, and of a publishing that was killed."""
    owned = leftover_files(out)
    manifest = read_set(out)
    if manifest is not None:
        owned[MANIFEST] = []
        if str(manifest["datamix_version"]).startswith("0.1."):
            owned["report.html"] = []  # 0.1 did not list its digest
        owned = both(owned, listed_files(manifest["outputs"]))
    return owned


def listed_files(entries: Sequence[Mapping[str, Any]]) -> Owned:
    """The files of a manifest's ``outputs``; a path that leads elsewhere is nobody's."""
    return {e["path"]: [e["sha256"]] for e in entries if _is_below(e["path"])}


def _is_below(name: str) -> bool:
    parts = Path(name).parts
    return bool(parts) and ".." not in parts and not name.startswith("/") and parts[0] != BUILDING


def both(first: Owned, second: Owned) -> Owned:
    """The files of either."""
    return {name: [*first.get(name, []), *second.get(name, [])] for name in (first | second)}


def leftover_files(out: Path) -> Owned:
    """The files that a killed publishing or export may have left in OUT."""
    noted: Owned = {}
    if is_marked(out / BUILDING):
        with suppress(FileNotFoundError, ValueError):
            noted = json.loads((out / BUILDING / OWNED).read_bytes())
    return {name: list(digests) for name, digests in noted.items() if _is_below(name)}


def remove_leftovers(out: Path, report: Callable[[str], None]) -> None:
    """Remove what a killed publishing or export left and the manifest of the set does not list."""
    listed = {MANIFEST, *(entry["path"] for entry in (read_set(out) or {"outputs": []})["outputs"])}
    for name, digests in leftover_files(out).items():
        if name not in listed:
            _take_away(out, name, digests, report)


def is_own_file(outs: Sequence[Path], cache: Path) -> Callable[[str, Sequence[str]], bool]:
    """Whether a path is never an input of a build of ``outs``, given the places that the source names.

    So are the cache, work in progress, and what is below OUT: sets, and checkpoints or exports beside them. Of an OUT inside
    which a source names its place, only the files of the set are.
    """
    work = [_real(cache) + os.sep, *(_real(out / BUILDING) + os.sep for out in outs)]
    homes = {_real(out) + os.sep: {*owned_files(out), MANIFEST} for out in outs}
    real_folder = remember(_real)

    @remember
    def named_homes(places: tuple[str, ...]) -> list[str]:
        return [home for home in homes if any(_real(place).startswith(home) for place in places)]

    def is_own(path: str, places: Sequence[str]) -> bool:
        path = path.removeprefix("file://")
        if "://" in path:
            return False
        folder, name = os.path.split(os.path.normpath(path))  # a relative one is made absolute once a folder
        real = os.path.join(real_folder(folder), name)
        if any(real.startswith(prefix) for prefix in work):
            return True
        home = next((home for home in homes if real.startswith(home)), None)
        if home is None:
            return False
        return home not in named_homes(tuple(places)) or real.removeprefix(home) in homes[home]

    return is_own


def _real(path: str | Path) -> str:
    return os.path.realpath(str(path).removeprefix("file://"))


def check_out(out: Path, cache: Path, recipe: Recipe, overwrite: bool) -> None:
    """Raise RecipeError where a build may not write into OUT; nothing is changed."""
    formats = [output.name for output in recipe.write if output.name != "parquet"]
    _check_places(out, cache, formats)
    if not out.exists():
        return
    if not out.is_dir():
        raise RecipeError(f"{out} is a file. Choose another folder with -o.")
    building, manifest = out / BUILDING, read_set(out)
    if os.path.lexists(building) and not is_marked(building):
        raise RecipeError(
            f"{building} was not made by datamix, and a build would work there. Choose another folder with -o, or move it away."
        )
    if manifest is None and not carries_marker(building):
        _check_empty(out, cache)
    if manifest is not None and manifest["recipe_sha256"] != recipe.sha256() and not overwrite:
        raise RecipeError(
            f"{out} holds a finished set built from another recipe ({manifest['name']}). Choose another folder with -o, or "
            "replace it with --overwrite."
        )
    sources = [*recipe.sources, HELD_OUT]
    ledger = [f"rejects/{name}.jsonl" for name in sources] + [f"removed/{name}.parquet" for name in sources]
    # what surely collides: links and files in the place of our folders, another's report, Parquet among our rows
    owned = owned_files(out)
    for name in (*_FOLDERS, *formats):
        check_folder(out / name)
    for name in (*_FILES, *ledger):
        _check_free(out, name, owned)
    for name in _READ_BY_PATTERN:
        found = [path.relative_to(out) for path in files_below(out / name)]
        for path in {p for file in found for p in (file, *file.parents) if p.suffix == ".parquet"}:
            _check_free(out, path.as_posix(), owned)


def _check_empty(out: Path, cache: Path) -> None:
    """Refuse a folder that is no set and holds more than the cache."""
    store = Path(_real(cache))
    allowed = {store, *store.parents, Path(_real(out), BUILDING)}
    if all(Path(_real(out), path.name) in allowed for path in out.iterdir()):
        return
    why = (
        "its manifest.json does not follow the schema of datamix"
        if os.path.lexists(out / MANIFEST)
        else "it holds other files"
    )
    raise RecipeError(
        f"{out} exists and is not a training set of datamix: {why}. Choose another folder with -o."
    )


def _check_places(out: Path, cache: Path, formats: Sequence[str]) -> None:
    """OUT and the cache may lie beside or below each other only where neither writes into the other's files."""
    for path in out.parents:
        if path.exists() and not path.is_dir():
            raise MachineError(
                f"{out} cannot be written: {path} is a file. Move it away, or choose another folder with -o."
            )
    check_cache(cache)
    folder, store = Path(_real(out)), Path(_real(cache))
    if folder == store or store in folder.parents:
        raise RecipeError(
            f"{out} is in the cache {cache}, which datamix fills and prunes. Choose another folder with -o or --cache."
        )
    if folder in store.parents and store.relative_to(folder).parts[0] in (BUILDING, *_FOLDERS, *formats):
        raise RecipeError(
            f"The cache {cache} is among the files of the set {out}. Choose another folder with --cache."
        )


def check_folder(place: Path) -> None:
    """Raise RecipeError where something else than a folder has the place of one of ours."""
    if os.path.lexists(place) and (place.is_symlink() or not place.is_dir()):
        raise _in_the_way(place)


def _in_the_way(path: Path) -> RecipeError:
    return RecipeError(
        f"{path} was not written by datamix and is where a file of the set must go. Nothing was changed: move it away, or choose "
        "another folder with -o."
    )


def switch(
    out: Path,
    staged: Path,
    replaced: Owned,
    manifests: tuple[dict[str, Any] | None, dict[str, Any]],
    report: Callable[[str], None],
) -> None:
    """Move the files below ``staged`` to OUT in place of the files ``replaced``.

    ``manifests``: the one that holds while files change (None: no set) and the one that holds afterwards. Raises RecipeError,
    with nothing changed, where a file of somebody else is in the way.
    """
    new = sorted(p.relative_to(staged).as_posix() for p in files_below(staged))
    for name in new:
        _check_free(out, name, replaced)
    moved = listed_files([entry for entry in manifests[1]["outputs"] if entry["path"] in set(new)])
    _write_json(out / BUILDING / OWNED, both(replaced, moved), out / BUILDING)
    if manifests[0] is None:
        (out / MANIFEST).unlink(missing_ok=True)
    else:
        save_manifest(out, manifests[0])
    for name, digests in replaced.items():
        if name != MANIFEST:
            _take_away(out, name, digests, report)
    for name in new:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        os.rename(staged / name, out / name)
    sync({out, *((out / name).parent for name in new)})
    save_manifest(out, manifests[1])


def _check_free(out: Path, name: str, owned: Mapping[str, Any]) -> None:
    path = out / name
    for parent in list(path.relative_to(out).parents)[:-1]:
        check_folder(out / parent)
    if os.path.lexists(path) and (name not in owned or path.is_symlink() or not path.is_file()):
        raise _in_the_way(path)


def _take_away(out: Path, name: str, digests: Sequence[str], report: Callable[[str], None]) -> None:
    """Remove a file of ours, or set it aside where its content is not what we wrote; then its folders, where empty."""
    path = out / name
    parents = [out / p for p in path.relative_to(out).parents][:-1]
    if any(p.is_symlink() for p in parents) or path.is_symlink() or not path.is_file():
        return
    if any(_has_digest(path, digest) for digest in digests):
        path.unlink()
    else:
        aside = next(
            p
            for n in range(1, 1 << 30)
            if not os.path.lexists(p := path.with_name(f"{path.name}.yours{'' if n == 1 else f'.{n}'}"))
        )
        path.rename(aside)
        report(f"{path} was changed after it was built, or cannot be read: it is now {aside}.")
    for folder in parents:
        with suppress(OSError):  # holds files of somebody else, or of ours that stay
            folder.rmdir()


def _has_digest(path: Path, sha256: str) -> bool:
    try:
        return file_sha256(path) == sha256
    except OSError:  # a broken disk, or permissions: not what we wrote
        return False


def save_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``manifest.json`` atomically; of a set, a kill leaves what is unfinished in ``.building``."""
    building = folder / BUILDING
    _write_json(folder / MANIFEST, manifest, building if building.is_dir() else folder, indent=2)


def _write_json(path: Path, value: Mapping[str, Any], beside: Path, indent: int | None = None) -> None:
    """Write a file atomically, by way of one in the folder ``beside``, which is ours."""
    partial = beside / f"{path.name}.partial-{os.getpid()}"
    partial.unlink(missing_ok=True)  # of a killed process with the same pid, the usual thing in containers
    with partial.open("x", encoding="utf-8") as stream:
        stream.write(json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)
    sync([path.parent])


def whole_set(out: Path, key: str, cache: Path, read_all: bool) -> dict[str, Any] | None:
    """The manifest of the set ``key`` where OUT holds it whole, else None.

    A file is whole where it has the listed digest; the digest is trusted while size, times and inode are those recorded when
    it was last read, unless ``read_all`` or a failed ``verify`` asks for every byte.
    """
    manifest = read_set(out)
    if manifest is None or manifest.get("key") != key:
        return None
    known: dict[str, Any] = {}
    if not read_all and not _is_failed(out):
        with suppress(OSError, ValueError):
            recorded = json.loads(_states_path(out, key, cache).read_bytes())
            known = recorded if isinstance(recorded, dict) else {}
    states: dict[str, State] = {}
    for entry in manifest["outputs"]:
        path = out / entry["path"]
        if path.is_symlink() or not path.is_file():
            return None
        states[entry["path"]] = state = _state(path)
        trusted = list(state) == known.get(entry["path"])
        if state[0] != entry["bytes"] or not (trusted or _has_digest(path, entry["sha256"])):
            return None
    _record(out, key, cache, states)
    clear_failed(out)
    return manifest


def record_whole(out: Path, manifest: Mapping[str, Any], cache: Path) -> None:
    """Note that every file of the set in OUT has just been written with its listed digest."""
    _record(out, manifest["key"], cache, {e["path"]: _state(out / e["path"]) for e in manifest["outputs"]})


def _state(path: Path) -> State:
    stat = path.lstat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _states_path(out: Path, key: str, cache: Path) -> Path:
    return cache / "files" / f"{key}-{digest(os.path.realpath(out))[:16]}.json"


def _record(out: Path, key: str, cache: Path, states: Mapping[str, State]) -> None:
    write_file(cache, _states_path(out, key, cache), json.dumps(states))


def mark_failed(out: Path) -> None:
    """Leave the mark of a failed verification in a set; where OUT cannot be written, none is left."""
    if read_set(out) is None:
        return
    with suppress(OSError), (out / FAILED).open("x", encoding="utf-8") as stream:
        stream.write(_FAILED_TEXT)


def clear_failed(out: Path) -> None:
    """Remove the mark of a failed verification, where it is ours."""
    with suppress(OSError):
        if _is_failed(out):
            (out / FAILED).unlink()


def _is_failed(out: Path) -> bool:
    mark = out / FAILED
    return not mark.is_symlink() and mark.is_file() and mark.read_bytes() == _FAILED_TEXT.encode()
