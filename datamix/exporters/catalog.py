"""The formats by name, and how one is opened from a recipe's ``write:`` entry.

A format is a frozen dataclass, ``ExportFormat`` and its options. Its line below is all that the rest of the house knows.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

from datamix.core.errors import RecipeError, nearest
from datamix.exporters.export_format import ExportFormat, RecordSource, SetInfo

EXPORT_FORMATS: Mapping[str, str] = {  # name -> module and class, imported when it is opened
    "parquet": "formats.row_files:Parquet",
    "arrow": "formats.row_files:Arrow",
    "jsonl": "formats.row_files:JsonLines",
    "safetensors": "formats.safetensors:Safetensors",
    "npy": "formats.token_files:Npy",
    "megatron": "formats.megatron:Megatron",
    "mds": "formats.mds:Mds",
    "litdata": "formats.litdata:LitData",
    "datatrove": "formats.token_files:Datatrove",
    "olmo-core": "formats.token_files:Olmo",
    "torchtitan": "formats.token_files:Torchtitan",
    "webdataset": "formats.webdataset:WebDataset",
    "nanochat": "trainers.nanochat:Nanochat",
    "llamafactory": "trainers.llamafactory:LlamaFactory",
    "trl": "trainers.trl:Trl",
    "axolotl": "trainers.axolotl:Axolotl",
    "ms-swift": "trainers.swift:Swift",
    "torchtune": "trainers.torchtune:Torchtune",
    "open-instruct": "trainers.open_instruct:OpenInstruct",
    "medicalgpt": "trainers.medicalgpt:MedicalGpt",
    "verl": "trainers.rl_prompts:Verl",
    "openrlhf": "trainers.rl_prompts:OpenRlhf",
    "openai": "trainers.openai:OpenAi",
}


def open_sink(
    name: str,
    options: tuple[tuple[str, Any], ...],
    info: SetInfo,
    split: str,
    records: RecordSource | None = None,
) -> ExportFormat:
    """The sink of format ``name`` for one split of a set.

    ``split`` is ``train`` or ``validation/SOURCE``. Names that the sink returns are relative to the folder it is given:
    OUT itself for ``parquet``, ``OUT/NAME`` for every other format. ``finish`` runs once a split, when the files of
    all splits are in the folder; of a name that several splits return, the last writer is right.

    Raises:
        RecipeError: an unknown format or option, a wrong value, or a format that cannot hold this kind.
    """
    sink = _load(name)
    if info.kind not in sink.KINDS:
        able = [other for other in EXPORT_FORMATS if info.kind in _load(other).KINDS]
        raise RecipeError(
            f"write: {name} holds {', '.join(sink.KINDS)} sets, and this one is of kind {info.kind}. "
            f"Formats that hold {info.kind}: {', '.join(able)}."
        )
    if info.kind == "preference" and not info.paired and not sink.LABELLED:
        raise RecipeError(f"write: {name} holds pairs, and this set holds labelled completions; write `trl`.")
    hints = get_type_hints(sink)
    names = [field.name for field in dataclasses.fields(sink)]
    choices = {n: hints[n] for n in names if n not in ("info", "split", "records")}
    for option, value in options:
        if option not in choices:
            known = f"its options: {', '.join(choices)}" if choices else "it has none"
            raise RecipeError(f"write: {name} has no option {option!r}; {known}.")
        _check_value(f"{name}.{option}", value, choices[option])
    arguments: dict[str, Any] = {"info": info, "split": split, **dict(options)}
    if "records" in names:
        arguments["records"] = records
    opened: ExportFormat = sink(**arguments)
    return opened


def keeps(
    name: str, options: tuple[tuple[str, Any], ...], info: SetInfo, files: Iterable[str] = (), file: str = ""
) -> tuple[str, ...]:
    """Which of ``ratio``, ``order`` and ``isolation`` survive in the trainer that reads format ``name``, or one ``file`` of it.

    ``files``: the names that its shards wrote, which show whether records were left out.
    """
    return open_sink(name, options, info, "train").keeps_of(files, file)


def command(name: str, options: tuple[tuple[str, Any], ...], info: SetInfo) -> str:
    """What trains from format ``name`` (or reads it), to be run inside its folder."""
    return open_sink(name, options, info, "train").command()


def needs_records(name: str) -> bool:
    """Whether the format holds text and so reads the records themselves (``open_sink(..., records=...)``)."""
    return "records" in {field.name for field in dataclasses.fields(_load(name))}


def _load(name: str) -> Any:
    if name not in EXPORT_FORMATS:
        close = nearest(name, EXPORT_FORMATS)
        hint = f" Did you mean {close}?" if close else ""
        raise RecipeError(f"write: there is no format {name!r}.{hint} Formats: {', '.join(EXPORT_FORMATS)}.")
    module, _, attribute = EXPORT_FORMATS[name].partition(":")
    return getattr(importlib.import_module(f"datamix.exporters.{module}"), attribute)


def _check_value(option: str, value: Any, hint: Any) -> None:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            choices = ", ".join(map(str, get_args(hint)))
            raise RecipeError(f"write: {option} is {value!r}; it must be one of {choices}.")
    elif type(value) is not hint:
        raise RecipeError(
            f"write: {option} is {value!r} ({type(value).__name__}); it must be {hint.__name__}."
        )
