"""From unknown files to a recipe that builds as it stands.

The first records of each file (a few hundred) say what it is; those of one folder that hold the same thing become one source
where they are many. What is not used is in the recipe too, as a comment that says why.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from datamix.core.contracts import Rows
from datamix.core.errors import DataError, RecipeError
from datamix.core.records import Kind, RecordKind
from datamix.core.records import texts as texts_of
from datamix.formats import (
    DatasetEntry,
    ShapeSpec,
    can_become,
    dataset_info,
    is_dataset_info,
    native_kinds,
    shape,
)
from datamix.jobs.first_recipe import RECORDS_OF, SourcePart, one_line, recipe_text
from datamix.jobs.output_files import check_outputs, complete_files
from datamix.pipeline.scan import SAMPLE_RECORDS, Recognised, recognise
from datamix.read import DOCUMENTS, find, read

_MANY_FILES = 20  # more of one thing in a folder are one source
_COUNTED_BYTES = 16 << 20  # files up to here are counted entirely
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

    Raises RecipeError: a path matches nothing, ``kind`` is no kind of recipe, or no file can be used for it.
    """
    if kind is not None and kind not in _TAKES:
        raise RecipeError(f"--kind {kind}: there is no such kind. Kinds: pretrain, sft, preference, prompt.")
    catalogues, files = _files(paths)
    parts = [_from_entry(entry, path.parent) for path in catalogues for entry in dataset_info(path)]
    listed = {os.path.abspath(p) for part in parts for p in part.paths}
    parts += _grouped([_look(path) for path in files if os.path.abspath(path) not in listed], paths)
    sizes = {
        of: sum(part.num_records for part in parts if part.kind == records and not part.problem)
        for of, records in RECORDS_OF.items()
    }
    chosen = next((of for of in _TAKES if of == kind), max(_TAKES, key=lambda of: sizes[of]))
    for number, part in enumerate(parts):
        direct = chosen == "pretrain" or (part.format == "question_answer" and chosen == "prompt")
        if part.problem or part.kind is None:
            continue
        if part.kind not in _TAKES[chosen] or not (direct or can_become(part.kind, RECORDS_OF[chosen])):
            problem = f"{part.kind} records cannot be used in a {chosen} recipe"
            parts[number] = replace(part, problem=problem)
    parts.sort(key=lambda part: bool(part.problem))
    if all(part.problem for part in parts):
        reasons = [
            f"{p.paths[0]}: {p.problem.removeprefix(p.paths[0] + ': ').rstrip('.')}" for p in parts[:5]
        ]
        files_text = "; ".join(reasons) or "there are no files"
        raise RecipeError(f"No file can be a source of a recipe of kind {chosen}: {files_text}.")
    return recipe_text(_named(parts), chosen, paths, base)


def write_recipe(paths: Sequence[str], kind: str | None, output: Path, overwrite: bool) -> None:
    """Write the recipe that ``init`` gives; it holds URLs as they were typed, secrets included, so that it builds.

    Raises RecipeError as ``init`` does, and where ``output`` is a file that is read or exists without ``overwrite``.
    """
    inputs = [
        p for path in paths for p in find([path], ".") if p in paths or not p.endswith((".yaml", ".yml"))
    ]
    for path in _files(paths)[0]:
        inputs += [
            str(path.parent / f) for entry in dataset_info(path) for f in entry.files if "://" not in f
        ]
    check_outputs([output], inputs, overwrite)
    text = init(paths, kind, str(output.parent))
    with complete_files([output], overwrite) as (draft,):
        draft.write_text(text, encoding="utf-8")


def _files(paths: Sequence[str]) -> tuple[list[Path], list[str]]:
    """LLaMA-Factory catalogues among the paths, and the data files."""
    catalogues = []
    for path in paths:
        inside = Path(path) / "dataset_info.json" if Path(path).is_dir() else Path(path)
        if inside.name == "dataset_info.json" and inside.is_file():
            try:
                if is_dataset_info(json.loads(inside.read_text(encoding="utf-8-sig"))):
                    catalogues.append(inside)
            except (OSError, ValueError, RecursionError):
                continue
    rest = [path for path in paths if Path(path) not in catalogues]
    files = [file for file in (find(rest, ".") if rest else []) if not _NOT_DATA.search(Path(file).name)]
    built: dict[Path, bool] = {}
    return catalogues, [
        f for f in files if Path(f) not in catalogues and not _in_built_set(Path(f).parent, built)
    ]


def _in_built_set(folder: Path, known: dict[Path, bool]) -> bool:
    """Whether a folder belongs to a set that datamix built."""
    if folder not in known:
        built = (folder / "manifest.json").is_file() and (folder / "train").is_dir()
        known[folder] = built or (folder != folder.parent and _in_built_set(folder.parent, known))
    return known[folder]


def _from_entry(entry: DatasetEntry, folder: Path) -> SourcePart:
    """An entry of a dataset_info.json whose file is there."""
    remote = any("://" in file for file in entry.files)
    path = entry.files[0] if remote else str(folder / entry.files[0])
    problem = entry.problem
    if problem is None and remote:
        problem = "it is on the Hub, which init does not load; add it as a source by hand"
    elif problem is None and not os.path.exists(path):
        problem = "its file does not exist"
    if problem is not None:
        return SourcePart(entry.name, (path,), entry.format, None, entry.columns, problem=problem)
    part = _look(path, entry.columns, entry.format)
    if part.problem and not entry.columns:  # the entry says nothing of its rows: what they are decides
        part = other if not (other := _look(path)).problem else part
    return replace(part, name=entry.name, columns=entry.columns or part.columns)


def _look(path: str, columns: tuple[tuple[str, str], ...] = (), format: str | None = None) -> SourcePart:
    """One file as a source, from its first records."""
    part = SourcePart(Path(path).name.split(".")[0], (path,), "", None, columns)
    try:
        seen = recognise(path, columns)
    except DataError as error:
        return replace(part, problem=str(error).replace("\n", " "))
    if not seen.values and not seen.rejects:
        return replace(part, problem="it holds no records")
    detected = seen.detection
    if format is not None and format != "auto":
        spec = ShapeSpec(format, native_kinds(format)[0], columns)
    elif detected is not None:
        spec = ShapeSpec(detected.format, detected.kind, columns or detected.columns)
    else:
        return replace(part, problem=f"no known format: {seen.fields()}")
    num = len(seen.values)
    shaped = shape(Rows(seen.values, list(range(num)), [None] * num, [b""] * num), 0, spec)
    rejects = [*seen.rejects, *shaped.rejects]
    total = num + len(seen.rejects)
    problem = ""
    if len(rejects) > _MAX_REJECT_SHARE * total:
        reasons = Counter(r.reason for r in rejects).most_common(3)
        listed = ", ".join(f"{reason} {n}" for reason, n in reasons)
        problem = f"{len(rejects)} of the first {total} records do not fit {spec.format} ({listed}): {rejects[0].detail}"
    first = texts_of(shaped.batch.slice(0, 1), spec.kind)
    num_records, estimated = _count(seen, total)
    return replace(
        part,
        format=spec.format,
        kind=spec.kind,
        columns=spec.columns,
        num_records=num_records,
        estimated=estimated,
        example=one_line(str(first[0].as_py())) if len(first) else "",
        problem=one_line(problem, 300),
        container=seen.piece.container,
    )


def _count(seen: Recognised, total: int) -> tuple[int, bool]:
    """The number of records: counted in small files, estimated from the sample's share of the bytes in large ones."""
    if total < SAMPLE_RECORDS:
        return total, False
    if seen.num_bytes <= _COUNTED_BYTES:
        return sum(len(rows.values) + len(rows.rejects) for rows in read(seen.piece)), False
    num_bytes = sum(
        len(json.dumps(v, ensure_ascii=False, default=str).encode(errors="replace")) for v in seen.values
    )
    return max(total, round(seen.num_bytes / max(num_bytes, 1) * total)), True


def _grouped(parts: list[SourcePart], roots: Sequence[str]) -> list[SourcePart]:
    """Documents of a tree, and many files of one thing in a folder, as one part."""
    limits = {os.path.normpath(root) for root in roots}
    mixed: set[str] = set()  # folders that hold something other than documents, here or further down
    for part in parts:
        if part.container not in _PROSE:
            mixed |= {str(parent) for parent in Path(part.paths[0]).parents}
    groups: dict[tuple[Any, ...], list[SourcePart]] = {}
    for part in parts:
        folder, suffix = os.path.split(part.paths[0])[0], "".join(Path(part.paths[0]).suffixes[-2:])
        if (
            part.container in _PROSE
        ):  # up to the highest folder with documents only, and not above what was asked for
            suffix = ""
            while folder not in limits and os.path.dirname(folder) and os.path.dirname(folder) not in mixed:
                folder = os.path.dirname(folder)
        key = (folder, suffix, part.format, part.kind, part.columns, part.container, part.problem)
        groups.setdefault(key, []).append(part)
    result: list[SourcePart] = []
    for (folder, suffix, *_), group in groups.items():
        if len(group) <= (1 if group[0].container in _PROSE else _MANY_FILES):
            result += group
            continue
        paths = tuple(p for part in group for p in part.paths)
        for shorter in (folder, os.path.join(folder, f"*{suffix}")):
            with suppress(RecipeError):  # it means no files
                if not group[0].problem and tuple(find([shorter], ".")) == paths:
                    paths = (shorter,)
        name = os.path.basename(folder) or "data"
        total, estimated = sum(part.num_records for part in group), any(part.estimated for part in group)
        merged = replace(group[0], name=name, paths=paths, num_files=len(group))
        result.append(replace(merged, num_records=total, estimated=estimated))
    return result


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
