"""From unknown files to a recipe that builds as it stands.

Each file is looked into (a few hundred records); those of one folder that hold the same thing become one source where
they are many. What is not used stands in the recipe too, as a comment that says why.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamix.core.contracts import Rows
from datamix.core.errors import DataError, RecipeError
from datamix.core.records import Kind, RecordKind
from datamix.core.records import texts as texts_of
from datamix.formats import DatasetEntry, ShapeSpec, can_become, dataset_info, is_dataset_info, shape
from datamix.jobs.first_recipe import MADE_OF, SourcePart, one_line, recipe_text
from datamix.jobs.output_files import check_outputs, complete_files
from datamix.pipeline.recognise import SAMPLE_RECORDS, Recognised, recognise
from datamix.read import DOCUMENTS, find, read

_MANY_FILES = 20  # more of one thing in a folder are one source
_COUNTED_BYTES = 16 << 20  # files up to here are counted whole
_MAX_REJECT_SHARE = 0.05  # of a source; more stops a build
_NOT_DATA = re.compile(
    r"^(tokenizer[^/]*|special_tokens_map|added_tokens|vocab|.*config)\.json$|^merges\.txt$|\.(ya?ml|toml|lock|jinja)$"
)
_PROSE = (*DOCUMENTS, "lines", "warc")
_TAKES: dict[Kind, tuple[RecordKind, ...]] = {
    "sft": ("sft", "preference"),
    "pretrain": ("text", "sft"),
    "preference": ("preference",),
    "prompt": ("prompt", "sft", "preference"),
}


def init(paths: Sequence[str], kind: str | None = None, base: str = ".") -> str:
    """The text of a recipe over ``paths``, to be written into the folder ``base``.

    Raises RecipeError: a path matches nothing, ``kind`` is no kind of recipe, or nothing that was found can be used for it.
    """
    wanted = _wanted(kind)
    catalogues, files = _files(paths)
    parts = [_from_entry(entry, path.parent) for path in catalogues for entry in dataset_info(path)]
    listed = {os.path.abspath(p) for part in parts for p in part.paths}
    parts += _grouped([_look(path) for path in files if os.path.abspath(path) not in listed], paths)
    chosen = wanted or _common_kind(parts)
    parts = sorted((_for_kind(part, chosen) for part in parts), key=lambda part: bool(part.problem))
    if not any(not part.problem for part in parts):
        told = "; ".join(_told(part) for part in parts[:5]) or "there are no files"
        raise RecipeError(f"Nothing that was found can be a source of a recipe of kind {chosen}: {told}.")
    return recipe_text(_named(parts), chosen, paths, base)


def write_recipe(paths: Sequence[str], kind: str | None, output: Path, overwrite: bool) -> None:
    """Write the recipe that ``init`` gives; URLs stand in it as they were typed, secrets included, so that it builds.

    Raises RecipeError as ``init`` does, and where ``output`` is a file that is read or exists without ``overwrite``.
    """
    inputs = [
        p for path in paths for p in find([path], ".") if p in paths or not p.endswith((".yaml", ".yml"))
    ]
    catalogues, _ = _files(paths)
    entries = [(path.parent, entry) for path in catalogues for entry in dataset_info(path)]
    inputs += [str(folder / file) for folder, entry in entries for file in entry.files if "://" not in file]
    check_outputs([output], inputs, overwrite)
    text = init(paths, kind, str(output.parent))
    with complete_files([output], overwrite) as (draft,):
        draft.write_text(text, encoding="utf-8")


def _told(part: SourcePart) -> str:
    return f"{part.paths[0]}: {part.problem.removeprefix(part.paths[0] + ': ').rstrip('.')}"


def _wanted(kind: str | None) -> Kind | None:
    for known in _TAKES:
        if kind == known:
            return known
    if kind is None:
        return None
    raise RecipeError(f"--kind {kind}: there is no such kind. Kinds: pretrain, sft, preference, prompt.")


def _files(paths: Sequence[str]) -> tuple[list[Path], list[str]]:
    """LLaMA-Factory catalogues among the paths, and the data files."""
    catalogues = []
    for path in paths:
        inside = Path(path) / "dataset_info.json" if Path(path).is_dir() else Path(path)
        if inside.name == "dataset_info.json" and inside.is_file() and _is_catalogue(inside):
            catalogues.append(inside)
    rest = [path for path in paths if Path(path) not in catalogues]
    files = [file for file in (find(rest, ".") if rest else []) if not _NOT_DATA.search(Path(file).name)]
    built: dict[Path, bool] = {}
    return catalogues, [
        f for f in files if Path(f) not in catalogues and not _in_built_set(Path(f).parent, built)
    ]


def _in_built_set(folder: Path, known: dict[Path, bool]) -> bool:
    """Whether a folder belongs to what datamix itself has built."""
    if folder not in known:
        own = (folder / "manifest.json").is_file() and (folder / "train").is_dir()
        known[folder] = own or (folder != folder.parent and _in_built_set(folder.parent, known))
    return known[folder]


def _is_catalogue(path: Path) -> bool:
    try:
        return is_dataset_info(json.loads(path.read_text(encoding="utf-8-sig")))
    except (OSError, ValueError, RecursionError):
        return False


def _from_entry(entry: DatasetEntry, folder: Path) -> SourcePart:
    """An entry of a dataset_info.json whose file is there."""
    remote = any("://" in file for file in entry.files)
    path = entry.files[0] if remote else str(folder / entry.files[0])
    none = SourcePart(
        entry.name, (path,), entry.format, None, entry.columns, 0, False, 0, "", entry.problem or ""
    )
    if entry.problem is not None:
        return none
    if remote:
        return replace(
            none, problem="it lies on the Hub, which init does not load; add it as a source by hand"
        )
    if not os.path.exists(path):
        return replace(none, problem="its file is not there")
    part = _look(path, entry.columns, entry.format)
    return replace(part, name=entry.name, columns=entry.columns or part.columns)


def _look(path: str, columns: tuple[tuple[str, str], ...] = (), format: str | None = None) -> SourcePart:
    name = Path(path).name.split(".")[0]
    empty = SourcePart(name, (path,), "", None, columns, 0, False, 1, "", "")
    try:
        seen = recognise(path, columns)
    except DataError as error:
        return replace(empty, problem=str(error).replace("\n", " "))
    if not seen.values and not seen.rejects:
        return replace(empty, problem="it holds no records")
    if seen.detection is None:
        return replace(empty, problem=f"no known format: {seen.fields()}")
    found = seen.detection
    part = replace(
        empty,
        format=format or found.format,
        kind=found.kind,
        columns=columns or found.columns,
        container=seen.piece.container,
    )
    return _with_sample(part, seen)


def _with_sample(part: SourcePart, seen: Recognised) -> SourcePart:
    """The part with its count, an example, and what is wrong with too many of its records."""
    assert part.kind is not None
    num = len(seen.values)
    rows = Rows(seen.values, list(range(num)), [None] * num, [b""] * num)
    shaped = shape(rows, 0, ShapeSpec(part.format, part.kind, part.columns))
    rejects = [*seen.rejects, *shaped.rejects]
    total = num + len(seen.rejects)
    count, estimated = _count(seen, total)
    example = ""
    if shaped.batch.num_rows:
        example = one_line(str(texts_of(shaped.batch.slice(0, 1), part.kind)[0].as_py()))
    problem = ""
    if len(rejects) > _MAX_REJECT_SHARE * total:
        reasons = ", ".join(
            f"{reason} {n}" for reason, n in Counter(r.reason for r in rejects).most_common(3)
        )
        problem = f"{len(rejects)} of the first {total} records do not fit {part.format} ({reasons}): {rejects[0].detail}"
    return replace(
        part, num_records=count, estimated=estimated, example=example, problem=one_line(problem, 300)
    )


def _count(seen: Recognised, total: int) -> tuple[int, bool]:
    """The number of records: counted in small files, estimated from the sample's share of the bytes in large ones."""
    if total < SAMPLE_RECORDS:
        return total, False
    if seen.num_bytes <= _COUNTED_BYTES:
        return sum(len(rows.values) + len(rows.rejects) for rows in read(seen.piece)), False
    written = sum(
        len(json.dumps(v, ensure_ascii=False, default=str).encode(errors="replace")) for v in seen.values
    )
    return max(total, round(seen.num_bytes / max(written, 1) * total)), True


def _grouped(parts: list[SourcePart], roots: Sequence[str]) -> list[SourcePart]:
    """Documents of a tree, and many files of one thing in a folder, as one part."""
    mixed = _mixed_folders(parts)
    groups: dict[tuple[Any, ...], list[SourcePart]] = {}
    for part in parts:
        folder, suffix = os.path.split(part.paths[0])[0], "".join(Path(part.paths[0]).suffixes[-2:])
        if part.container in _PROSE:
            folder, suffix = _top(folder, mixed, roots), ""
        key = (folder, suffix, part.format, part.kind, part.columns, part.container, part.problem)
        groups.setdefault(key, []).append(part)
    made: list[SourcePart] = []
    for (folder, suffix, *_), group in groups.items():
        prose = group[0].container in _PROSE and len(group) > 1
        made += [_merged(group, folder, suffix)] if prose or len(group) > _MANY_FILES else group
    return made


def _mixed_folders(parts: list[SourcePart]) -> set[str]:
    """Folders that hold something else than documents, here or further down."""
    mixed: set[str] = set()
    for part in parts:
        if part.container not in _PROSE:
            mixed |= {str(parent) for parent in Path(part.paths[0]).parents}
    return mixed


def _top(folder: str, mixed: set[str], roots: Sequence[str]) -> str:
    """The highest folder above ``folder`` that holds documents only, not above what was asked for."""
    limits = {os.path.normpath(root) for root in roots}
    top = folder
    while top not in limits and os.path.dirname(top) and os.path.dirname(top) not in mixed:
        top = os.path.dirname(top)
    return top


def _merged(group: list[SourcePart], folder: str, suffix: str) -> SourcePart:
    """Several parts as one, named by their folder where that means the same files."""
    paths = tuple(p for part in group for p in part.paths)
    for shorter in (folder, os.path.join(folder, f"*{suffix}")):
        if not group[0].problem and _holds(shorter) == paths:
            paths = (shorter,)
            break
    total = sum(part.num_records for part in group)
    name = os.path.basename(folder) or "data"
    estimated = any(part.estimated for part in group)
    return replace(
        group[0], name=name, paths=paths, num_records=total, estimated=estimated, num_files=len(group)
    )


def _holds(path: str) -> tuple[str, ...]:
    """The files that a folder or glob means; none where it means no files."""
    try:
        return tuple(find([path], "."))
    except RecipeError:
        return ()


def _common_kind(parts: list[SourcePart]) -> Kind:
    """The kind of recipe whose own records are the most."""
    counts: Counter[Kind] = Counter()
    for kind, own in MADE_OF.items():
        counts[kind] = sum(part.num_records for part in parts if part.kind == own and not part.problem)
    return max(_TAKES, key=lambda kind: counts[kind])


def _for_kind(part: SourcePart, kind: Kind) -> SourcePart:
    if part.problem or part.kind is None:
        return part
    native = part.format == "question_answer" and kind == "prompt"
    made_of = MADE_OF[kind]
    if part.kind in _TAKES[kind] and (native or kind == "pretrain" or can_become(part.kind, made_of)):
        return part
    return replace(part, problem=f"{part.kind} records cannot be used in a {kind} recipe")


def _named(parts: list[SourcePart]) -> list[SourcePart]:
    """The parts with names that a recipe takes, each once."""
    taken: Counter[str] = Counter()
    named = []
    for part in parts:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", part.name).strip("_.-")[:60] or "source"
        taken[name] += 1
        while taken[name] > 1:
            name = f"{name}_{taken[name]}"
            taken[name] += 1
        named.append(replace(part, name=name))
    return named
