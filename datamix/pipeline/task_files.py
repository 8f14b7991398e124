"""Tasks as JSON, for engines whose workers are other processes on other machines.

A task file names one of the functions below and holds its spec, field by field as the dataclass of that function says: that is
its schema. Reading one checks every value against it and can call nothing else; nothing is ever unpickled. What many tasks of a
phase share, such as the files of all sources, is one file beside them, named by its digest. Cost: a few microseconds a field.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from datamix import __version__
from datamix.clean import STEPS, Step
from datamix.core.contracts import Task
from datamix.core.errors import DataError, MachineError
from datamix.core.hashing import digest
from datamix.pipeline import encode_pass, estimate, line_pass, order_rows, pack_sources, prepare, scan, select
from datamix.pipeline import write_shards as write
from datamix.pipeline.building import BUILDING
from datamix.pipeline.rows import RowSet
from datamix.pipeline.shards import SourceShards

# Versions that can change a byte of a set; the second, where they are installed.
PACKAGES = ("pyarrow", "tokenizers", "transformers", "jinja2", "numpy", "ftfy")
CONTAINER_PACKAGES = {
    "html": "resiliparse",
    "epub": "resiliparse",
    "pdf": "pypdfium2",
    "docx": "mammoth",
    "warc": "warcio",
}
STEP_PACKAGES = {"language": "py3langid"}

CALLS: dict[str, Callable[[Any, Path], dict[str, Any]]] = {
    "scan": scan.scan_files,
    "prepare": prepare.prepare,
    "count_lines": line_pass.count,
    "common_lines": line_pass.common,
    "cut_lines": line_pass.cut,
    "encode": encode_pass.encode,
    "fit": encode_pass.fit,
    "sign": encode_pass.make_keys,
    "select": select.run,
    "pack": pack_sources.pack,
    "order": order_rows.schedule,
    "write": write.write_shard,
    "estimate": estimate.estimate,
}
_NAMES = {call: name for name, call in CALLS.items()}
_FORMAT = 1
_FIELDS = {"format": int, "call": str, "label": str, "key": str, "home": str, "weight": int, "spec": dict}
_SHARED = (RowSet, SourceShards)  # what many tasks hold alike
_SHARED_CHARS = 16 << 10  # a smaller one stays in the file
_REFERENCE = "shared"


def environment() -> dict[str, str]:
    """The versions that can change a byte of a set, ``""`` where a package is not installed."""
    found = {"datamix": __version__, "unicode": unicodedata.unidata_version}
    for name in sorted({*PACKAGES, *CONTAINER_PACKAGES.values(), *STEP_PACKAGES.values()}):
        found[name] = ""
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def check_environment(asked: dict[str, str], where: str) -> None:
    """Raise MachineError where a version here differs from the build's; ``where`` names this place for a person."""
    here = environment()
    wrong = [name for name in sorted({*asked, *here}) if asked.get(name) != here.get(name)]
    if wrong:
        name = wrong[0]
        theirs, ours = (versions.get(name) or "none" for versions in (asked, here))
        others = f" (and {', '.join(wrong[1:])})" if wrong[1:] else ""
        raise MachineError(
            f"{where}: {name} is {ours} here and {theirs} where the build was started{others}. Other versions can write other "
            "bytes: install the same ones in both places, from the same lock file."
        )


class TaskWriter:
    """Tasks to JSON; what they share is written once into ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # by identity: the same object is in every task of a phase. It is kept, so that its identity stays its own.
        self._seen: dict[int, tuple[Any, dict[str, Any]]] = {}

    def text(self, task: Task) -> str:
        """The content of a task file. Paths become absolute."""
        value = {"format": _FORMAT, "call": _NAMES[task.call], "label": task.label, "key": task.key,
                 "home": os.path.abspath(task.home), "weight": task.weight, "spec": self._plain(task.spec)}  # fmt: skip
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    def _plain(self, value: Any) -> Any:
        if isinstance(value, _SHARED):
            if id(value) not in self._seen:
                self._seen[id(value)] = (value, self._share(self._fields(value)))
            return self._seen[id(value)][1]
        if dataclasses.is_dataclass(value):
            return self._fields(value)
        if isinstance(value, (tuple, list)):
            return [self._plain(v) for v in value]
        if isinstance(value, dict):
            return {str(k): self._plain(v) for k, v in value.items()}
        if isinstance(value, Path):
            return os.path.abspath(value)
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)  # JSON has no infinity
        return value

    def _fields(self, value: Any) -> dict[str, Any]:
        return {f.name: self._plain(getattr(value, f.name)) for f in dataclasses.fields(value)}

    def _share(self, plain: dict[str, Any]) -> dict[str, Any]:
        text = json.dumps(plain, ensure_ascii=False, allow_nan=False)
        if len(text) < _SHARED_CHARS:
            return plain
        name = digest(plain)
        write_whole(self._folder / f"{name}.json", text)
        return {_REFERENCE: name}


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that others see it whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


class TaskReader:
    """JSON to tasks of the build of one set; ``folder`` holds what they share, ``cache`` and ``out`` are absolute.

    Raises DataError where a file is not what a build writes.
    """

    def __init__(self, folder: Path, cache: Path, out: Path) -> None:
        self._folder, self._cache, self._out = folder, cache, out
        self._shared: dict[tuple[str, type], Any] = {}

    def task(self, text: str) -> Task:
        """The task of a file. Its results go into the cache or into the ``.building`` of the set, nowhere else."""
        try:
            value = json.loads(text)
            if not isinstance(value, dict) or value.keys() != _FIELDS.keys() or value["format"] != _FORMAT:
                raise ValueError("it has other fields")
            plain = {name: _checked(kind, value[name]) for name, kind in _FIELDS.items()}
            home, call = Path(plain["home"]), CALLS[plain["call"]]
            if home not in (self._cache / "store", self._out / BUILDING):
                raise ValueError(f"its results would go to {home}")
            if len(plain["key"]) != 64 or not set(plain["key"]) <= set("0123456789abcdef"):
                raise ValueError("its key is none")
            spec = self._typed(next(iter(get_type_hints(call).values())), plain["spec"])
            return Task(plain["label"], plain["key"], call, spec, home, plain["weight"])
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"A task file in {self._folder.parent} is not what this version of datamix writes ({error}). Run the build again "
                "with the same version everywhere."
            ) from None

    def _typed(self, hint: Any, value: Any) -> Any:
        """``value`` of a JSON file as ``hint`` says."""
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            return self._dataclass(hint, value)
        origin, arguments = get_origin(hint), get_args(hint)
        if origin in (Union, types.UnionType):
            if value is None and type(None) in arguments:
                return None
            (only,) = [a for a in arguments if a is not type(None)]
            return self._typed(only, value)
        if origin is tuple:
            _checked(list, value)
            if arguments[-1] is Ellipsis:
                return tuple(self._typed(arguments[0], v) for v in value)
            return tuple(self._typed(a, v) for a, v in zip(arguments, value, strict=True))
        if origin is dict:
            return {k: self._typed(arguments[1], v) for k, v in _checked(dict, value).items()}
        if origin is Literal:
            if value not in arguments:
                raise ValueError(f"{value!r} is none of {arguments}")
            return value
        return value if hint is Any else _checked(hint, value)

    def _dataclass(self, kind: type, value: Any) -> Any:
        _checked(dict, value)
        if value.keys() == {_REFERENCE}:
            place = str(value[_REFERENCE]), kind
            if place not in self._shared:
                name = f"{place[0]}.json"
                if os.path.basename(name) != name:
                    raise ValueError(f"{name} is no name")
                shared = json.loads((self._folder / name).read_text(encoding="utf-8"))
                self._shared[place] = self._dataclass(kind, shared)
            return self._shared[place]
        hints = get_type_hints(kind)
        if value.keys() != {f.name for f in dataclasses.fields(kind)}:
            raise ValueError(f"{kind.__name__} has other fields")
        fields = {name: self._typed(hints[name], v) for name, v in value.items()}
        if kind is Step:
            fields["options"] = self._typed(STEPS[fields["name"]], value["options"])
        return kind(**fields)


def _checked(kind: Any, value: Any) -> Any:
    """A plain value of the type that is asked: never another one that happens to convert."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and (type(value) is int or value in ("inf", "-inf", "nan")):
        return float(value)
    if type(value) is not kind:
        raise TypeError(f"{str(value)[:40]!r} is no {kind.__name__}")
    return value
