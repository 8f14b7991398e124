"""A trainer's configuration as a recipe that builds the same set: axolotl, LLaMA-Factory, ms-swift, TRL, open-instruct, Megatron.

Each tool's data sets, weights and lengths become sources, weights and ``encode``; weights keep the unit that the tool meant (rows;
for Megatron tokens). What has no equal, and what stays with the trainer, is a comment. Nothing is run: shell scripts are split into
words. Sources: the tools' documented arguments (LLaMA-Factory ``hparams/data_args.py``, axolotl ``utils/schemas``, ms-swift
``arguments/base_args/data_args.py``, TRL ``scripts/utils.py``, open-instruct ``dataset_transformation.py``, Megatron ``training/arguments.py``).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from datamix.core.errors import RecipeError
from datamix.formats import dataset_info, is_dataset_info
from datamix.jobs.first_recipe import near_columns
from datamix.jobs.output_files import check_outputs, complete_files
from datamix.jobs.trainer_config import RecipeDraft, as_list, detect_kind, detect_tool, read_config
from datamix.pipeline.scan import recognise
from datamix.recipe import Recipe

_LENGTHS = ("cutoff_len", "sequence_len", "max_length", "max_seq_length", "max_seq_len", "seq_length")
_MODELS = (
    "tokenizer_name_or_path",
    "tokenizer_name",
    "tokenizer_config",
    "tokenizer_model",
    "model_name_or_path",
    "base_model",
    "model",
)
_DATA_WORDS = re.compile(
    r"data|column|mix|interleav|split|template|system|loss|mask|prompt|stream|probs|samples|shuffle|trunc|thought|tool"
)
_DONE = {
    *_LENGTHS, *_MODELS, "stage", "seed", "dataset", "datasets", "dataset_dir", "data_path", "val_size", "val_set_size",
    "split_dataset_ratio", "packing", "neat_packing", "sample_packing", "train_on_prompt", "train_on_inputs", "mask_history",
    "interleave_probs", "interleave_prob", "mix_strategy", "stopping_strategy", "max_samples", "eval_dataset", "val_dataset",
    "dataset_mixer", "dataset_mixer_list", "dataset_name", "dataset_train_split", "rl", "rlhf_type", "pretraining_dataset",
    "test_datasets", "system", "dataset_seed", "data_seed", "dataset_num_proc", "preprocessing_num_workers", "dataset_prepared_path",
}  # fmt: skip


def write_recipe(
    files: Sequence[str], output: Path, overwrite: bool, kind: str | None = None, tokenizer: str | None = None
) -> list[str]:
    """Write the recipe of a configuration to ``output``; return what a user should know about it."""
    check_outputs([output], files, overwrite)
    text, notes = recipe_of(files, str(output.parent), kind, tokenizer)
    with complete_files([output], overwrite) as (draft,):
        draft.write_text(text, encoding="utf-8")
    return notes


def recipe_of(
    files: Sequence[str], base: str = ".", kind: str | None = None, tokenizer: str | None = None
) -> tuple[str, list[str]]:
    """The YAML of a recipe that builds what ``files`` describe, and notes on what has no equal.

    Raises RecipeError: a file is missing, is a Python script, or is the configuration of no tool that is known.
    """
    words = ""
    values: dict[str, Any] = {}
    catalogue: Path | None = None
    for file in files:
        content = read_config(file)
        if isinstance(content, dict) and is_dataset_info(content):
            catalogue = Path(file)
        elif isinstance(content, dict):
            values |= {str(key).replace("-", "_"): value for key, value in content.items()}
        else:
            words, arguments = content
            values |= arguments
    work = RecipeDraft(Path(base), Path(files[0]).parent)
    work.kind = kind or detect_kind(words, values)
    tool = detect_tool(words, values, catalogue)
    if tool is None:
        raise RecipeError(
            f"{files[0]}: is the configuration of no tool that is known (axolotl, LLaMA-Factory, ms-swift, TRL, open-instruct, "
            "Megatron): it names no data set in their words."
        )
    _READERS[tool](work, values, catalogue)
    if not work.sources:
        raise RecipeError(f"{files[0]}: names no data set that could be a source ({tool}).")
    _common(work, values, tokenizer)
    recipe: dict[str, Any] = {
        "name": f"{work.kind}-set",
        "kind": work.kind,
        **{key: work.recipe.pop(key) for key in ("seed", "tokenizer") if key in work.recipe},
        "sources": work.sources,
        **work.recipe,
    }
    unread = sorted(set(values) - _DONE)
    about_data = [key for key in unread if _DATA_WORDS.search(key)]
    if about_data:
        work.notes.append(
            f"no equal here, or already how datamix works: {', '.join(f'{k}={_short(values[k])}' for k in about_data)}"
        )
    if rest := [key for key in unread if key not in about_data]:
        work.notes.append(f"stays with the trainer: {', '.join(rest)}")
    Recipe.of(json.loads(json.dumps(recipe)), base)  # every error now
    body = yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False, width=110)
    head = [
        f"# The data of {', '.join(Path(f).name for f in files)} ({tool}), written by datamix init --from."
    ]
    return "\n".join([*head, *(f"# - {note}" for note in work.notes), body]), work.notes


def _llamafactory(work: RecipeDraft, values: dict[str, Any], catalogue: Path | None) -> None:
    if catalogue is None:
        folder = str(values.get("dataset_dir", "data"))
        catalogue = next(
            (p for f in (work.folder, Path()) if (p := f / folder / "dataset_info.json").is_file()), None
        )
    names = as_list(values.get("dataset"))
    entries = {entry.name: entry for entry in dataset_info(catalogue)} if catalogue else {}
    if catalogue is None:
        work.notes.append(
            "dataset_info.json was not found: give it too, as `datamix init --from train.yaml data/dataset_info.json`"
        )
    for name in names or list(entries):
        entry = entries.get(name)
        if entry is None:
            work.add(name)
            continue
        if entry.problem is not None:
            work.notes.append(f"{name}: {entry.problem}")
            continue
        assert catalogue is not None
        place = (
            entry.files[0]
            if "://" in entry.files[0]
            else str(Path(os.path.relpath(catalogue.parent, work.folder), entry.files[0]))
        )
        most = min(
            (n for n in (entry.max_records, values.get("max_samples")) if isinstance(n, int)), default=None
        )
        source = work.add(
            place, {"format": entry.format, "columns": dict(entry.columns), "max_records": most}
        )
        work.sources[name] = work.sources.pop(next(n for n, s in work.sources.items() if s is source))
    _interleave(
        work,
        as_list(values.get("interleave_probs")),
        str(values.get("mix_strategy", "concat")).endswith("over"),
    )
    if values.get("train_on_prompt"):
        work.recipe.setdefault("encode", {})["loss_on"] = "all"
    if values.get("mask_history"):
        work.recipe.setdefault("encode", {})["loss_on"] = "last_assistant"
    held_out = [
        entries[n] for n in as_list(values.get("eval_dataset")) if n in entries and entries[n].problem is None
    ]
    if held_out and catalogue:
        work.recipe["validation"] = {
            "path": [
                Path(os.path.relpath(catalogue.parent / e.files[0], work.base)).as_posix() for e in held_out
            ]
        }


def _axolotl(work: RecipeDraft, values: dict[str, Any], _: Path | None) -> None:
    for entry in [*as_list(values.get("datasets")), *as_list(values.get("pretraining_dataset"))]:
        entry = {"path": entry} if isinstance(entry, str) else entry
        files = as_list(entry.get("data_files"))
        columns = {"text": entry["field"]} if entry.get("field") and work.kind == "pretrain" else {}
        kind = entry.get("type")
        if isinstance(kind, dict):
            names = {
                "field_instruction": "instruction",
                "field_input": "input",
                "field_output": "output",
                "field_system": "system",
            }
            columns |= {
                ours: kind[theirs]
                for theirs, ours in names.items()
                if kind.get(theirs) and kind[theirs] != ours
            }
        if entry.get("field_messages") not in (None, "messages", "conversations"):
            columns["messages"] = entry["field_messages"]
        for file in files or [entry.get("path", "")]:
            work.add(str(file), {"columns": columns})
        for key in (
            "shards",
            "split",
            "name",
            "message_property_mappings",
            "roles_to_train",
            "train_on_eos",
            "roles",
        ):
            if entry.get(key) not in (None, "train"):
                work.notes.append(
                    f"datasets: {key}={_short(entry[key])} of {entry.get('path')} has no equal: choose files, fields or max_records"
                )
    if values.get("train_on_inputs"):
        work.recipe.setdefault("encode", {})["loss_on"] = "all"
    held_out = [str(e.get("path")) for e in as_list(values.get("test_datasets")) if isinstance(e, dict)]
    if held_out:
        work.recipe["validation"] = {"path": [work.local(p) or p for p in held_out]}


def _swift(work: RecipeDraft, values: dict[str, Any], _: Path | None) -> None:
    for word in as_list(values.get("dataset")):
        place, _hash, num = str(word).partition("#")
        on_hub = (
            not any((f / place).exists() for f in (work.folder, Path()))
            and "::" not in place
            and "/" in place
        )
        most = int(num) if num.isdigit() else None
        name = work.add(
            f"ms::{place}" if on_hub and not place.startswith((".", "/")) else place, {"max_records": most}
        )
        if values.get("system"):
            name["system"] = str(values["system"])
    probs = as_list(values.get("interleave_prob"))
    _interleave(work, probs, values.get("stopping_strategy") == "all_exhausted")
    held_out = [work.local(str(w).partition("#")[0]) or str(w) for w in as_list(values.get("val_dataset"))]
    if held_out:
        work.recipe["validation"] = {"path": held_out}
    if values.get("loss_scale") in ("all", "last_round"):
        work.recipe.setdefault("encode", {})["loss_on"] = {"all": "all", "last_round": "last_assistant"}[
            values["loss_scale"]
        ]


def _trl(work: RecipeDraft, values: dict[str, Any], _: Path | None) -> None:
    entries = as_list(values.get("datasets")) or [
        {"path": values.get("dataset_name"), "name": values.get("dataset_config")}
    ]
    for entry in entries:
        place, files = str(entry.get("path")), entry.get("data_files")
        files = [f for v in files.values() for f in as_list(v)] if isinstance(files, dict) else as_list(files)
        for file in files or [place]:
            work.add(str(file))
        for key in ("name", "split", "columns", "data_dir"):
            if entry.get(key) not in (None, "train"):
                work.notes.append(
                    f"datasets: {key}={_short(entry[key])} of {place} has no equal: choose files, or give the source columns:"
                )
    if values.get("completion_only_loss") is False and not values.get("assistant_only_loss"):
        work.recipe.setdefault("encode", {})["loss_on"] = "all"


def _open_instruct(work: RecipeDraft, values: dict[str, Any], _: Path | None) -> None:
    mixer = values.get("dataset_mixer_list") or values.get("dataset_mixer") or {}
    mixer = yaml.safe_load(mixer) if isinstance(mixer, str) else mixer
    pairs = (
        list(mixer.items()) if isinstance(mixer, dict) else list(zip(mixer[::2], mixer[1::2], strict=False))
    )
    for place, amount in pairs:
        source = work.add(str(place))
        whole = "." not in str(amount) and float(amount) != 1
        num = work.count(source)
        if whole:
            source["max_records"] = int(amount)
        elif float(amount) < 1 and num is not None:
            source["max_records"] = max(1, round(num * float(amount)))
        elif float(amount) != 1:
            source["max_epochs"] = float(amount) if float(amount) > 1 else 1
            advice = (
                "set weight to its part of the rows"
                if float(amount) > 1
                else "set max_records to that part of its rows"
            )
            work.notes.append(f"{place}: {amount} of its rows: {advice}")
    if splits := set(map(str, as_list(values.get("dataset_mixer_list_splits")))) - {"train"}:
        work.notes.append(f"splits {', '.join(sorted(splits))}: name their files as path")


def _megatron(work: RecipeDraft, values: dict[str, Any], _: Path | None) -> None:
    words = [str(w) for w in as_list(values.get("data_path") or values.get("train_data_path"))]
    words = words[0].split() if len(words) == 1 else words
    weighed = len(words) > 1 and re.fullmatch(r"[0-9.eE+-]+", words[0]) is not None
    pairs = list(zip(words[::2], words[1::2], strict=False)) if weighed else [(None, w) for w in words]
    for weight, prefix in pairs:
        raw = re.sub(r"(_text)?_(document|sentence)$", "", prefix)
        places = [f"{raw}{suffix}" for suffix in (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet")]
        place = next((p for p in places if work.local(p)), f"{raw}.jsonl")
        work.add(place, {"weight": float(weight) if weight else None})
    if weighed:
        work.recipe["mix"] = {"unit": "tokens"}
    if values.get("split"):
        parts = [float(part) for part in str(values["split"]).split(",")]
        if len(parts) > 1 and 0 < parts[1] < sum(parts):
            work.recipe["validation"] = {"share": round(parts[1] / sum(parts), 6)}


_READERS = {
    "LLaMA-Factory": _llamafactory,
    "axolotl": _axolotl,
    "ms-swift": _swift,
    "TRL": _trl,
    "open-instruct": _open_instruct,
    "Megatron": _megatron,
}


def _interleave(work: RecipeDraft, probs: list[Any], until_all: bool) -> None:
    """Probabilities of rows as weights; until the first source is used up, or with repeats until the last is."""
    if not probs or len(probs) != len(work.sources):
        return
    work.recipe["mix"] = {"unit": "records"}
    counts = [work.count(source) for source in work.sources.values()]
    for source, prob in zip(work.sources.values(), probs, strict=True):
        source["weight"] = float(prob)
    if until_all:
        known = [c / float(p) for c, p in zip(counts, probs, strict=True) if c]
        if len(known) < len(counts):
            work.notes.append(
                "used until every source is exhausted: set max_epochs of the smaller sources to what that takes"
            )
            return
        for source, num, prob in zip(work.sources.values(), counts, probs, strict=True):
            source["max_epochs"] = max(1.0, round(max(known) * float(prob) / (num or 1) + 0.005, 2))


def _common(work: RecipeDraft, values: dict[str, Any], tokenizer: str | None) -> None:
    """What every tool has: model, length, packing, validation, seed; and the columns of local files."""
    model = tokenizer or next((str(values[key]) for key in _MODELS if values.get(key)), None)
    if model is None:
        model = "Qwen/Qwen2.5-0.5B-Instruct"
        work.notes.append("no model is named: put the tokenizer of yours into `tokenizer:`")
    work.recipe["tokenizer"] = work.local(model) or model
    seed = values.get("seed", values.get("data_seed"))
    if isinstance(seed, int):
        work.recipe["seed"] = seed
    encode = work.recipe.setdefault("encode", {})
    length = next((values[key] for key in _LENGTHS if isinstance(values.get(key), int)), None)
    if length is None and work.kind != "prompt":
        work.notes.append("no length is given: 2048 tokens")
    if length is not None or work.kind != "prompt":
        encode["max_length"] = length or 2048
    if any(values.get(key) for key in ("packing", "neat_packing", "sample_packing")) and work.kind == "sft":
        encode["pack"] = "best_fit"
    if not encode:
        work.recipe.pop("encode")
    share = next(
        (values[key] for key in ("val_size", "val_set_size", "split_dataset_ratio") if values.get(key)), None
    )
    if isinstance(share, int | float) and not isinstance(share, bool) and "validation" not in work.recipe:
        work.recipe["validation"] = {"share": share} if share < 1 else {"records": int(share)}
    for source in work.sources.values():
        path = work.base / source["path"]
        if "columns" not in source and source.get("format", "auto") == "auto" and path.is_file():
            seen = recognise(str(path))
            if seen.detection is None and (near := near_columns(seen.values)):
                source["columns"] = dict(near)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "..."
