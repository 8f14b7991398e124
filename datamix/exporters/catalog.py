"""The formats by name, and how one is opened from a recipe's ``write:`` entry.

A format is one file: a frozen dataclass whose fields after ``info``, ``split`` (and ``records``, where it holds
text) are its options, with ``write``, ``finish`` and ``keeps``. Its line below is all that the rest of the house knows.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, Protocol, get_args, get_origin, get_type_hints

from datamix.core.contracts import Sink
from datamix.core.errors import RecipeError
from datamix.core.records import Kind
from datamix.exporters.target import RecordSource, SetInfo

EXPORT_FORMATS: Mapping[str, str] = {  # name -> where its class lies; imported when it is opened
    "parquet": "datamix.exporters.formats.parquet:Parquet",
    "arrow": "datamix.exporters.formats.arrow:Arrow",
    "jsonl": "datamix.exporters.formats.jsonl:JsonLines",
    "safetensors": "datamix.exporters.formats.safetensors:Safetensors",
    "npy": "datamix.exporters.formats.npy:Npy",
    "megatron": "datamix.exporters.formats.megatron:Megatron",
    "mds": "datamix.exporters.formats.mds:Mds",
    "litdata": "datamix.exporters.formats.litdata:LitData",
    "datatrove": "datamix.exporters.formats.datatrove:Datatrove",
    "olmo-core": "datamix.exporters.trainers.olmo:Olmo",
    "torchtitan": "datamix.exporters.trainers.torchtitan:Torchtitan",
    "webdataset": "datamix.exporters.formats.webdataset:WebDataset",
    "nanochat": "datamix.exporters.trainers.nanochat:Nanochat",
    "llamafactory": "datamix.exporters.trainers.llamafactory:LlamaFactory",
    "trl": "datamix.exporters.trainers.trl:Trl",
    "axolotl": "datamix.exporters.trainers.axolotl:Axolotl",
    "ms-swift": "datamix.exporters.trainers.swift:Swift",
    "torchtune": "datamix.exporters.trainers.torchtune:Torchtune",
    "open-instruct": "datamix.exporters.trainers.open_instruct:OpenInstruct",
    "medicalgpt": "datamix.exporters.trainers.medicalgpt:MedicalGpt",
    "verl": "datamix.exporters.trainers.verl:Verl",
    "openrlhf": "datamix.exporters.trainers.openrlhf:OpenRlhf",
    "openai": "datamix.exporters.trainers.openai:OpenAi",
}
_GIVEN = ("info", "split", "records")  # fields that are no options


class ExportFormat(Sink, Protocol):
    """A sink that says which kinds it holds and what survives in its trainer."""

    KINDS: ClassVar[tuple[Kind, ...]]

    def keeps(self) -> tuple[str, ...]:
        """Which of ``ratio``, ``order`` and ``isolation`` survive in the trainer that reads it."""
        ...

    def command(self) -> str:
        """What trains from the folder, or reads it, run inside the format's own folder."""
        ...


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
    all splits stand in the folder; of a name that several splits return, the last writer is right.

    Raises:
        RecipeError: an unknown format or option, a wrong value, or a format that cannot hold this kind.
    """
    sink = _load(name)
    if info.kind not in sink.KINDS:
        able = [other for other in EXPORT_FORMATS if info.kind in _load(other).KINDS]
        raise RecipeError(
            f"write: {name} holds {_listed(sink.KINDS)} sets, and this one is of kind {info.kind}. "
            f"Formats that hold {info.kind}: {_listed(able)}."
        )
    hints = get_type_hints(sink)
    choices = {f.name: hints[f.name] for f in dataclasses.fields(sink) if f.name not in _GIVEN}
    for option, value in options:
        _check_option(name, option, value, choices)
    given: dict[str, Any] = {"info": info, "split": split, **dict(options)}
    if "records" in hints:
        given["records"] = records
    opened: ExportFormat = sink(**given)
    return opened


def keeps(name: str, options: tuple[tuple[str, Any], ...], info: SetInfo) -> tuple[str, ...]:
    """Which of ``ratio``, ``order`` and ``isolation`` survive in the trainer that reads format ``name``."""
    return open_sink(name, options, info, "train").keeps()


def command(name: str, options: tuple[tuple[str, Any], ...], info: SetInfo) -> str:
    """What trains from format ``name`` (or reads it), to be run inside its folder."""
    return open_sink(name, options, info, "train").command()


def needs_records(name: str) -> bool:
    """Whether the format holds text and so reads the records themselves (``open_sink(..., records=...)``)."""
    return "records" in {f.name for f in dataclasses.fields(_load(name))}


def _load(name: str) -> Any:
    if name not in EXPORT_FORMATS:
        raise RecipeError(f"write: there is no format {name!r}. Formats: {_listed(EXPORT_FORMATS)}.")
    module, _, attribute = EXPORT_FORMATS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def _check_option(name: str, option: str, value: Any, choices: dict[str, Any]) -> None:
    if option not in choices:
        known = f"its options: {_listed(choices)}" if choices else "it has none"
        raise RecipeError(f"write: {name} has no option {option!r}; {known}.")
    hint = choices[option]
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise RecipeError(
                f"write: {name}.{option} is {value!r}; it must be one of {_listed(map(str, get_args(hint)))}."
            )
    elif type(value) is not hint:
        raise RecipeError(
            f"write: {name}.{option} is {value!r} ({type(value).__name__}); it must be {hint.__name__}."
        )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
