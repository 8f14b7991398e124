"""Recipe errors in words: every problem with its key and the nearest right name."""

from __future__ import annotations

import re
import types
import typing
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from datamix.core.errors import nearest
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


_WORDS: dict[tuple[str, Any], str] = {  # (last key, its value) -> the word it takes here
    **{("kind", word): kind for word, kind in _KINDS.items()},
    ("pack", True): "best_fit",
    ("pack", False): "none",
    ("loss_on", "answer"): "assistant",
    ("loss_on", "completion"): "assistant",
    ("loss_on", "last"): "last_assistant",
    ("on_short", "truncate"): "shrink",
    ("scope", "global"): "across",
    ("unit", "rows"): "records",
    ("unit", "samples"): "records",
    ("unit", "examples"): "records",
}
# What pydantic calls a type, and what a recipe writes there.
_EXPECTED = dict.fromkeys(("float_type", "float_parsing"), "a number")
_EXPECTED |= dict.fromkeys(
    ("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "a whole number"
)
_EXPECTED |= dict.fromkeys(("bool_type", "bool_parsing"), "true or false")
_EXPECTED |= dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "a map of keys")
_EXPECTED |= {
    "tuple_type": "a list",
    "list_type": "a list",
    "string_type": "text",
    "finite_number": "a finite number",
}
# The key that a bare value most likely means, and an example of the map; `*` is any name or number.
_MAPS: dict[str, tuple[str, str]] = {
    "sources": ("", "{NAME: {path: data.jsonl}}"),
    "sources.*": ("path", "{path: data.jsonl}"),
    "sources.*.columns": ("", "{instruction: question, output: answer}"),
    "sources.*.chat_template_kwargs": ("", "{enable_thinking: false}"),
    "chat_template_kwargs": ("", "{enable_thinking: false}"),
    "groups": ("", "{general: {weight: 0.7}}"),
    "groups.*": ("weight", "{weight: 0.7}"),
    "clean.*": ("", "{length: {min_chars: 2}}"),
    "dedupe": ("", "{exact: true, near: {threshold: 0.8}}"),
    "dedupe.near": ("threshold", "{threshold: 0.8}"),
    "dedupe.lines": ("max_documents", "{max_documents: 10}"),
    "decontaminate": ("against", "{against: [{path: evals.jsonl}]}"),
    "decontaminate.against.*": ("path", "{path: evals.jsonl}"),
    "validation": ("share", "{share: 0.01}"),
    "encode": ("max_length", "{max_length: 2048}"),
    "encode.fim": ("rate", "{rate: 0.5}"),
    "mix": ("size", "{size: 10M}"),
    "mix.stages.*": ("", "{name: main, share: 1, weights: {general: 0.2, medical: 0.8}}"),
    "mix.stages.*.weights": ("", "{general: 0.2, medical: 0.8}"),
    "mix.size.epochs": ("", "{medical: 2}"),
    "mix.replay": ("of", "{of: general, share: 0.05}"),
    "write.*": ("", "{megatron: {layout: blocks}}"),
    "write.*.options": ("", "{megatron: {layout: blocks}}"),
}


def explain(error: ValidationError, root: type[BaseModel]) -> list[tuple[Key, str]]:
    """Each problem with its key: what the recipe says, what is expected, what to do."""
    located = [(*_locate(problem, root), problem) for problem in error.errors(include_url=False)]
    problems: list[tuple[Key, str]] = []
    for number, (key, allowed, problem) in enumerate(located):
        others = [k for n, (k, _, _) in enumerate(located) if n != number]
        inside = any(k[: len(key)] == key for k in others)
        if problem["type"] == "missing":  # the mapping has a wrong key instead: that is the mistake
            beside = any(k[:-1] == key[:-1] for k in others)
            duplicate = beside and key[:-1] in (("mix", "weights"), ("mix", "size"))
        elif (
            isinstance(problem.get("input"), dict) and problem["type"] != "value_error"
        ):  # another branch of the union reports what is inside
            duplicate = inside
        else:  # another branch of the union reports the word
            branches = ("model_type", "dict_type", "tuple_type", "bool_type", "bool_parsing")
            duplicate = problem["type"] in branches and any(k == key for k, _ in problems)
        if not duplicate:
            problems.append((key, describe(problem, key, allowed)))
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


def describe(problem: Any, key: Key, allowed: list[str]) -> str:
    """One problem of pydantic in the recipe's words: what is there, what it takes, what to write."""
    kind, value = problem["type"], problem.get("input")
    if kind == "extra_forbidden":
        if key[:-1] == ("mix", "weights"):
            return (
                "is not a key here: a weight of a source is its key `weight`, of a group the group's; "
                "this takes proportional, unimax or {temperature: 2}"
            )
        return unknown_key(str(key[-1]), allowed)
    if kind == "missing":
        return "is missing"
    if kind == "literal_error":
        right = [w.strip("' ") for w in problem["ctx"]["expected"].replace(" or ", ", ").split(",")]
        word = value.lower() if isinstance(value, str) else value
        known = _WORDS.get((str(key[-1]), word)) if isinstance(word, str | bool) else None
        close = known or nearest(str(value), right)
        hint = f". Did you mean {close}?" if close else ""
        shown = repr(value) if isinstance(value, str) else _yaml(value)
        return f"is {shown}; it takes {', '.join(right)}{hint}"
    if kind == "string_pattern_mismatch":
        return f"is {value!r}; a name takes letters, digits, _ . and -, begins with none of the last two, and is at most 100 long"
    if kind == "value_error":
        return str(problem["ctx"]["error"]).rstrip(".")
    if kind == "too_short":
        return "is empty; name at least one"
    if kind in ("tuple_type", "list_type"):
        return f"is {_yaml(value)}; it takes a list" + (f": write [{_listed(value, key)}]" if value else "")
    if kind in _EXPECTED:
        return f"is {_yaml(value)}; it takes {_EXPECTED[kind]}{_fix(value, key, _EXPECTED[kind])}"
    message: str = problem["msg"][0].lower() + problem["msg"][1:]
    return message.replace("input should", "should") + (
        f"; found {_yaml(value)}" if value is not None else ""
    )


def _fix(value: Any, key: Key, expected: str) -> str:
    """How the value is written as what the key takes; empty where it cannot be guessed."""
    if expected == "a map of keys":
        pattern = ".".join("*" if _is_name(key, i) else str(part) for i, part in enumerate(key))
        inner, example = _MAPS.get(pattern, ("", ""))
        if pattern == "dedupe" and value in ("exact", "near"):
            return ": write {exact: true}" if value == "exact" else f": write {example}"
        if inner and isinstance(value, str | int | float) and not isinstance(value, bool):
            nested = f"[{{path: {_yaml(value)}}}]" if pattern == "decontaminate" else _yaml(value)
            return f": write {{{inner}: {nested}}}"
        return f", such as {example}" if example else ""
    if isinstance(value, str) and (share := re.fullmatch(r"\s*([0-9.]+)\s*%\s*", value)):
        return f": write {float(share[1]) / 100:g}" if expected == "a number" else ""
    if isinstance(value, str) and (size := re.fullmatch(r"\s*([0-9.]+)\s*([kKmM])\s*", value)):
        return f": write {round(float(size[1]) * (10**3 if size[2] in 'kK' else 10**6))}"
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,3}([,_][0-9]{3})+", value):
        return f": write {re.sub('[,_]', '', value)}"
    if expected == "text" and isinstance(value, int | float):
        return f': write "{_yaml(value)}"'
    return ""


def _is_name(key: Key, i: int) -> bool:
    """Whether a part of a key is a name that the recipe chose, or the number of an entry."""
    return isinstance(key[i], int) or (i == 1 and key[0] in ("sources", "groups"))


def _listed(value: Any, key: Key) -> str:
    return (
        f"{{path: {_yaml(value)}}}"
        if key == ("decontaminate", "against") and isinstance(value, str)
        else _yaml(value)
    )


def _yaml(value: Any) -> str:
    """A value as a recipe writes it, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    text = text.removesuffix("...\n").strip()
    return text if len(text) <= 60 else text[:57] + "..."


def unknown_key(word: str, right: list[str]) -> str:
    """``cutoff_len`` -> the datamix name for it; otherwise the nearest name that exists there."""
    if hint := _KEYS.get(word):
        return f"is not a key here. In datamix that is {hint}"
    close = nearest(word, right)
    return "is not a key here; " + (
        f"did you mean {close}?" if close else f"the keys here are {', '.join(right)}"
    )
