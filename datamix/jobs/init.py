"""From unknown files to a recipe that builds as it stands.

The first records of each file (a few hundred) say what it is; shards and trees of documents become one source, folders become
groups, each kind of records a recipe. What is not used is in the recipe too, as a comment that says why.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
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
from datamix.jobs.first_recipe import RECORDS_OF, FirstRecipe, SourcePart, near_columns, one_line, recipe_text
from datamix.jobs.output_files import check_outputs, complete_files
from datamix.jobs.trainer_config import no_data
from datamix.pipeline.scan import SAMPLE_RECORDS, Recognised, recognise
from datamix.read import DOCUMENTS, find, read

_MANY_FILES = 20  # more of one thing in a folder are one source
_COUNTED_BYTES = 16 << 20  # files up to here are counted entirely
_MAX_REJECT_SHARE = 0.05  # of a source; more stops a build
_NOT_DATA = re.compile(
    r"^(tokenizer[^/]*|special_tokens_map|added_tokens|vocab|.*config)\.json$|^merges\.txt$|\.(ya?ml|toml|lock|jinja)$"
)
_PROSE = (*DOCUMENTS, "lines", "warc")
_SHARD = re.compile(
    r"(.*?)[-_. ]*(?:part|shard|split|chunk|file)?[-_. ]*\d+(?:[-_. ]*of[-_. ]*\d+)?", re.IGNORECASE
)
_TAKES: dict[Kind, tuple[RecordKind, ...]] = {
    "sft": ("sft", "preference"),
    "pretrain": ("text", "sft"),
    "preference": ("preference",),
    "prompt": ("prompt", "sft", "preference"),
}


def init(paths: Sequence[str], kind: str | None = None, base: str = ".", tokenizer: str | None = None) -> str:
    """The text of a recipe over ``paths``, to be written into the folder ``base``: of ``kind``, or what most records are.

    Raises RecipeError: a path matches nothing, ``kind`` is no kind of recipe, or no file can be used for it.
    """
    return first_recipes(paths, kind, base, tokenizer)[0].text


def first_recipes(
    paths: Sequence[str], kind: str | None = None, base: str = ".", tokenizer: str | None = None
) -> list[FirstRecipe]:
    """A recipe for each kind that the files hold, the one with the most records first; with ``kind`` only that one."""
    if kind is not None and kind not in _TAKES:
        raise RecipeError(f"--kind {kind}: there is no such kind. Kinds: pretrain, sft, preference, prompt.")
    catalogues, files = _files(paths)
    parts = [_from_entry(entry, path.parent) for path in catalogues for entry in dataset_info(path)]
    listed = {os.path.abspath(p) for part in parts for p in part.paths}
    parts += _grouped([_look(path) for path in files if os.path.abspath(path) not in listed], paths)
    parts += [SourcePart("", (p,), "", None, (), problem=problem) for p in paths if (problem := no_data(p))]
    parts = [replace(part, group=_folder_group(part, paths)) for part in parts]
    sizes = Counter[Kind]()
    for of, records in RECORDS_OF.items():
        sizes[of] = sum(part.num_records for part in parts if part.kind == records and not part.problem)
    chosen: list[Kind] = [of for of in _TAKES if of == kind]
    if kind is None:
        chosen = [of for of in sorted(_TAKES, key=lambda of: -sizes[of]) if sizes[of]] or ["sft"]
    recipes = []
    for of in chosen:
        fitting = _named([_for_kind(part, of) for part in parts])
        fitting.sort(key=lambda part: bool(part.problem))
        if all(part.problem for part in fitting):
            reasons = [
                f"{p.paths[0]}: {p.problem.removeprefix(p.paths[0] + ': ').rstrip('.')}" for p in fitting[:5]
            ]
            files_text = "; ".join(reasons) or "there are no files"
            raise RecipeError(f"No file can be a source of a recipe of kind {of}: {files_text}.")
        recipes.append(recipe_text(fitting, of, paths, base, tokenizer))
    unused = [part for part in parts if all(_for_kind(part, of).problem for of in chosen)]
    return [replace(recipes[0], unused=tuple(_for_kind(part, chosen[0]) for part in unused)), *recipes[1:]]


def write_recipes(
    paths: Sequence[str], kind: str | None, output: Path, overwrite: bool, tokenizer: str | None = None
) -> list[tuple[Path, FirstRecipe]]:
    """Write the recipes of ``first_recipes``: the first to ``output``, further kinds beside it as ``NAME-KIND.yaml``.

    They hold URLs as they were typed, secrets included, so that they build. Raises RecipeError as ``init`` does, and where an
    output is a file that is read or exists without ``overwrite``.
    """
    inputs = [
        p for path in paths for p in find([path], ".") if p in paths or not p.endswith((".yaml", ".yml"))
    ]
    for path in _files(paths)[0]:
        inputs += [
            str(path.parent / f) for entry in dataset_info(path) for f in entry.files if "://" not in f
        ]
    check_outputs([output], inputs, overwrite)
    recipes = first_recipes(paths, kind, str(output.parent), tokenizer)
    outputs = [output, *(output.with_name(f"{output.stem}-{r.kind}{output.suffix}") for r in recipes[1:])]
    check_outputs(outputs, inputs, overwrite)
    with complete_files(outputs, overwrite) as drafts:
        for draft, recipe in zip(drafts, recipes, strict=True):
            draft.write_text(recipe.text, encoding="utf-8")
    return list(zip(outputs, recipes, strict=True))


def _for_kind(part: SourcePart, kind: Kind) -> SourcePart:
    """The part, with a problem where its records cannot be used in a recipe of ``kind``."""
    if part.problem or part.kind is None:
        return part
    direct = kind == "pretrain" or (part.format == "question_answer" and kind == "prompt")
    if part.kind in _TAKES[kind] and (direct or can_become(part.kind, RECORDS_OF[kind])):
        return part
    return replace(part, problem=f"{part.kind} records cannot be used in a {kind} recipe")


def _folder_group(part: SourcePart, roots: Sequence[str]) -> str:
    """The folder that a part is in, as a name: of several folders asked for that one, else the one below; or none."""
    several = sum(os.path.isdir(root) for root in roots) > 1
    for root in roots:
        below = os.path.relpath(part.paths[0], root) if "://" not in part.paths[0] else os.pardir
        folder, _, rest = below.partition(os.sep)
        if os.path.isdir(root) and folder != os.pardir and (several or rest):
            return _name(os.path.basename(os.path.abspath(root)) if several else folder)
    return ""


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
    rest = [path for path in rest if not no_data(path)]
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
    """An entry of a dataset_info.json; what is on the Hub is a source that init does not load."""
    remote = any("://" in file for file in entry.files)
    path = entry.files[0] if remote else str(folder / entry.files[0])
    part = SourcePart(entry.name, (path,), entry.format, None, entry.columns, max_records=entry.max_records)
    if entry.problem is not None:
        return replace(part, problem=entry.problem)
    if remote:
        return replace(
            part, remote=True, problem="on the Hub: init does not load it, and wrote it as a comment"
        )
    if not os.path.exists(path):
        return replace(part, problem="its file does not exist")
    look = _look(path, entry.columns, entry.format)
    if look.problem and not entry.columns:  # the entry says nothing of its rows: what they are decides
        look = other if not (other := _look(path)).problem else look
    return replace(
        look, name=entry.name, columns=entry.columns or look.columns, max_records=entry.max_records
    )


def _look(path: str, columns: tuple[tuple[str, str], ...] = (), format: str | None = None) -> SourcePart:
    """One file as a source, from its first records."""
    part = SourcePart(Path(path).name.split(".")[0], (path,), "", None, columns)
    try:
        seen = recognise(path, columns)
        if seen.detection is None and not columns and (near := near_columns(seen.values)):
            seen = recognise(path, near)
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
        fix = " Name them in a recipe: columns: {instruction: FIELD, output: FIELD} or {text: FIELD}"
        fix = fix if seen.values and isinstance(seen.values[0], dict) else ""
        return replace(part, problem=f"no known format: {seen.fields()}.{fix}")
    num = len(seen.values)
    shaped = shape(Rows(seen.values, list(range(num)), [None] * num, [b""] * num), 0, spec)
    rejects = [*seen.rejects, *shaped.rejects]
    total = num + len(seen.rejects)
    problem = ""
    if len(rejects) > _MAX_REJECT_SHARE * total:
        reasons = Counter(r.reason for r in rejects).most_common(3)
        counts = ", ".join(f"{reason} {n}" for reason, n in reasons)
        problem = f"{len(rejects)} of the first {total} records do not fit {spec.format} ({counts}): {rejects[0].detail}"
    texts = [str(text) for text in texts_of(shaped.batch, spec.kind).to_pylist()]
    trained = (
        texts_of(shaped.batch, spec.kind, "answer").to_pylist() if texts and spec.kind == "sft" else texts
    )
    num_bytes = sum(len(str(text).encode(errors="replace")) for text in trained)
    num_records, estimated = _count(seen, total)
    return replace(
        part,
        format=spec.format,
        kind=spec.kind,
        columns=spec.columns,
        num_records=num_records,
        estimated=estimated,
        text_bytes=num_bytes * num_records / max(1, total),
        example=one_line(texts[0]) if texts else "",
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
        if len(group) > (1 if group[0].container in _PROSE else _MANY_FILES):
            result.append(
                _merged(group, (folder, os.path.join(folder, f"*{suffix}")), os.path.basename(folder))
            )
            continue
        shards: dict[str, list[SourcePart]] = {}
        for part in group:
            stem = os.path.basename(part.paths[0]).removesuffix(suffix)
            match = _SHARD.fullmatch(stem)
            shards.setdefault(match[1] if match else part.paths[0], []).append(part)
        for prefix, files in shards.items():
            names = [os.path.basename(file.paths[0]).removesuffix(suffix) for file in files]
            start = os.path.commonprefix(names).rstrip("0123456789")  # noqa: RUF071 - of names, not of paths
            name, glob = prefix.strip("-_. ") or os.path.basename(folder), f"{folder}/{start}*{suffix}"
            result += [_merged(files, (folder, glob), name)] if len(files) > 1 else files
    return result


def _merged(group: list[SourcePart], places: Sequence[str], name: str) -> SourcePart:
    """Several parts as one, by a folder or glob that means the same files."""
    paths = tuple(p for part in group for p in part.paths)
    for place in places:
        with suppress(RecipeError):  # it means no files
            if not group[0].problem and set(find([place], ".")) == set(paths):
                paths = (place,)
                break
    return replace(
        group[0],
        name=name or "data",
        paths=paths,
        num_files=len(group),
        num_records=sum(part.num_records for part in group),
        text_bytes=sum(part.text_bytes for part in group),
        estimated=any(part.estimated for part in group),
    )


def _named(parts: list[SourcePart]) -> list[SourcePart]:
    """The parts with names that a recipe takes, each once, and groups with names that no source has."""
    taken: Counter[str] = Counter()
    named = []
    for part in parts:
        name = _name(part.name)
        taken[name] += 1
        while taken[name] > 1:
            name = f"{name}_{taken[name]}"
            taken[name] += 1
        named.append(replace(part, name=name))
    return [replace(p, group=f"{p.group}-group" if p.group in taken else p.group) for p in named]


def _name(text: str) -> str:
    """A text as a name of a recipe: letters of any script, composed, at most 60 bytes."""
    name = re.sub(r"[^\w.-]+", "_", unicodedata.normalize("NFC", text)).strip("_.-")
    return name.encode()[:60].decode(errors="ignore").strip("_.-") or "source"
