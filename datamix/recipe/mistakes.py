"""Recipe errors in words: every problem with its key and the nearest right name."""

from __future__ import annotations

import difflib
import re
import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError

from datamix.recipe.strict_yaml import Key

# Words of other tools, and what they are called here.
_KINDS = dict.fromkeys(("dpo", "kto", "rm", "orpo", "simpo", "reward"), "preference")
_KINDS |= dict.fromkeys(("grpo", "ppo", "rloo", "rlhf", "rlvr"), "prompt")
_KINDS |= dict.fromkeys(("pt", "cpt"), "pretrain")
_KEYS = {
    "cutoff_len": "encode.max_length",
    "max_seq_length": "encode.max_length",
    "max_seq_len": "encode.max_length",
    "sequence_len": "encode.max_length",
    "block_size": "encode.max_length",
    "seq_length": "encode.max_length",
    "packing": "encode.pack",
    "neat_packing": "encode.pack: best_fit",
    "sample_packing": "encode.pack: best_fit",
    "train_on_prompt": "encode.loss_on: all",
    "train_on_inputs": "encode.loss_on: all",
    "mask_history": "encode.loss_on: last_assistant",
    "interleave_probs": "weight (on each source)",
    "probabilities": "weight (on each source)",
    "proportion": "weight (on each source)",
    "mix_strategy": "weight (on each source), and mix.on_short",
    "stopping_strategy": "mix.on_short",
    "max_samples": "max_records (on each source)",
    "num_samples": "max_records (on each source)",
    "val_size": "validation: {share: ...}",
    "test_size": "validation: {share: ...}",
    "eval_dataset": "validation: {path: ...}",
    "dataset": "sources",
    "datasets": "sources",
    "data_files": "path (on each source)",
    "file_name": "path (on each source)",
    "template": "chat_template",
    "tokenizer_name": "tokenizer",
    "model_name_or_path": "tokenizer",
    "output_dir": "the -o option of `datamix build`",
    "stage": "kind",
    "epochs": "mix.size: {epochs: {SOURCE: n}}",
    "shuffle": "seed (the order is always a seeded permutation)",
}


def explain(error: ValidationError, root: type[BaseModel]) -> list[tuple[Key, str]]:
    """Each problem with its key: what the recipe says, what is expected, what to do."""
    located = [(*_locate(problem, root), problem) for problem in error.errors(include_url=False)]
    problems: list[tuple[Key, str]] = []
    for number, (key, allowed, problem) in enumerate(located):
        if (
            problem["type"] == "literal_error"
        ):  # another branch of the union reports what is inside the mapping
            others = [k for n, (k, _, _) in enumerate(located) if n != number]
            duplicate = isinstance(problem.get("input"), dict) and any(k[: len(key)] == key for k in others)
        else:  # another branch of the union reports the word
            branches = ("model_type", "dict_type", "tuple_type")
            duplicate = problem["type"] in branches and any(k == key for k, _ in problems)
        if not duplicate:
            problems.append((key, _phrase(problem, key, allowed)))
    return problems


def _locate(problem: Any, root: type[BaseModel]) -> tuple[Key, list[str]]:
    """The key as it is written in the recipe, and the names that its last part could have there.

    Pydantic adds the tried branch of a union to the place (``('mix', 'size', 'Epochs', 'epochs')``) and marks a wrong
    key of a map (``('sources', NAME, '[key]')``). The model's annotation at that place decides which parts the recipe
    wrote, never their spelling: a source may be called ``Epochs``.
    """
    key: list[str | int] = []
    allowed: list[str] = []
    annotation: Any = root
    for part in problem["loc"]:
        members = _members(annotation)
        if len(members) > 1:  # the part is the branch: a model's class, alone or inside `function-after[...]`
            named = [m for m in members if re.search(rf"\b{getattr(m, '__name__', '?')}\b", str(part))]
            annotation = named[0] if named else None
            continue
        member = members[0] if members else None
        allowed = []
        if isinstance(member, type) and issubclass(member, BaseModel):
            allowed = list(member.model_fields)
            annotation = member.model_fields[part].annotation if part in allowed else None
            if part == "[key]" and problem["type"] != "extra_forbidden":
                continue
        elif typing.get_origin(member) in (dict, tuple, list):
            arguments = typing.get_args(member)
            annotation = arguments[1] if typing.get_origin(member) is dict else arguments[0]
        else:  # a recipe writes nothing below a single value
            continue
        key.append(part)
    return tuple(key), allowed


def _members(annotation: Any) -> list[Any]:
    """The types that a place may hold, without None."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [m for a in typing.get_args(annotation) if a is not type(None) for m in _members(a)]
    return [] if annotation is None else [annotation]


def _phrase(problem: Any, key: Key, allowed: list[str]) -> str:
    kind, value = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        return unknown_key(str(key[-1]), allowed)
    if kind == "missing":
        return "is missing"
    if kind == "literal_error":
        right = [w.strip("' ") for w in problem["ctx"]["expected"].replace(" or ", ", ").split(",")]
        close = _KINDS.get(str(value).lower()) if key == ("kind",) else nearest(str(value), right)
        hint = f". Did you mean {close}?" if close else ""
        return f"is {value!r}; it takes {', '.join(right)}{hint}"
    if kind == "string_pattern_mismatch":
        return f"is {value!r}; a name takes letters, digits, _ . and -, begins with none of the last two, and is at most 100 long"
    if kind == "value_error":
        return str(problem["ctx"]["error"]).rstrip(".")
    message: str = problem["msg"][0].lower() + problem["msg"][1:]
    text = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    return message.replace("input should be", "should be") + (f"; found {text}" if value is not None else "")


def unknown_key(word: str, right: list[str]) -> str:
    """``cutoff_len`` -> the datamix name for it; otherwise the nearest name that exists there."""
    if hint := _KEYS.get(word):
        return f"is not a key here. In datamix that is {hint}"
    close = nearest(word, right)
    return "is not a key here; " + (
        f"did you mean {close}?" if close else f"the keys here are {', '.join(right)}"
    )


def nearest(word: str, right: list[str]) -> str | None:
    """The closest of ``right`` to ``word``, if any is close."""
    close = difflib.get_close_matches(word.lower(), right, n=1, cutoff=0.6)
    return close[0] if close else None
