"""Every format by its name: the kinds it gives, the fields it reads, how a row is recognised and read.

The order is the order of recognition: where two formats fit a row, the more specific one comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from datamix.core.records import RecordKind
from datamix.formats import instruct, preference
from datamix.formats.drafts import Draft, ForeignRow, TurnNames

Reader = Callable[[ForeignRow, TurnNames], list[Draft]]

_EXTRAS = frozenset({"tools", "chat_template_kwargs"})
_SYSTEM = frozenset({"system", "system_prompt"})
_ASKED = _SYSTEM | {"history", "input"}
_MARGIN = frozenset(
    {
        "margin",
        "score_chosen",
        "score_rejected",
        "chosen_score",
        "rejected_score",
        "chosen_rating",
        "rejected_rating",
    }
)
_CHAT = frozenset({"messages", "conversations"})


@dataclass(frozen=True)
class RecordFormat:
    """One foreign format. ``kinds``: what its rows are, the native kind first."""

    name: str
    kinds: tuple[RecordKind, ...]
    doc: str
    fields: frozenset[str]  # top-level fields it reads
    readers: Mapping[RecordKind, Reader]
    fits: Callable[[ForeignRow], bool]


def _format(
    name: str,
    kind: RecordKind,
    doc: str,
    fields: frozenset[str],
    reader: Reader,
    fits: Callable[[ForeignRow], bool],
) -> RecordFormat:
    return RecordFormat(name, (kind,), doc, fields, MappingProxyType({kind: reader}), fits)


def _is_text(row: ForeignRow, *names: str) -> bool:
    return all(isinstance(row.get(name), str) for name in names)


def _has(row: ForeignRow, *names: str) -> bool:
    return all(row.get(name) is not None for name in names)


def _is_turns(value: Any) -> bool:
    if isinstance(value, str):
        return value.lstrip()[:2] in ("[{", "[]")
    if not isinstance(value, list) or not value or not isinstance(value[0], dict):
        return False
    return bool({"role", "from"} & value[0].keys())


def _says(value: Any, words: frozenset[str]) -> bool:
    """Whether a turn of a conversation has one of the role words."""
    if isinstance(value, str):
        return any(f'"{word}"' in value for word in words)
    return any(isinstance(t, dict) and (t.get("role") or t.get("from")) in words for t in value)


_ANSWERS = frozenset(
    {"assistant", "gpt", "chatgpt", "bing", "bard", "bot", "model", "function_call", "tool_call"}
)


def _is_chat(row: ForeignRow, name: str) -> bool:
    return _is_turns(row.get(name)) and _says(row[name], _ANSWERS)


def _is_pair(row: ForeignRow) -> bool:
    return _has(row, "chosen", "rejected")


def _any_chat(row: ForeignRow) -> bool:
    return _is_turns(row.get("messages")) or _is_turns(row.get("conversations"))


def _ends_asking(row: ForeignRow) -> bool:
    """A conversation that ends with the user, and a reference beside it."""
    value = row.get("messages")
    if not isinstance(value, list) or not value or not isinstance(value[-1], dict):
        return False
    return value[-1].get("role") == "user" and any(_has(row, name) for name in instruct.REFERENCES)


_ALL = (
    _format(
        "paired_messages",
        "preference",
        "LLaMA-Factory v1: chosen_messages and rejected_messages, two whole conversations",
        frozenset({"chosen_messages", "rejected_messages"}) | _SYSTEM | _MARGIN | _EXTRAS,
        preference.paired_messages,
        lambda row: _has(row, "chosen_messages", "rejected_messages"),
    ),
    _format(
        "rejected_response",
        "preference",
        "ms-swift: messages ending in the better answer, and rejected_response or rejected_messages",
        _CHAT | {"rejected_response", "rejected_messages"} | _SYSTEM | _MARGIN | _EXTRAS,
        preference.rejected_response,
        lambda row: _any_chat(row) and (_has(row, "rejected_response") or _has(row, "rejected_messages")),
    ),
    _format(
        "openai_preference",
        "preference",
        "OpenAI preference fine-tuning: input of messages and tools, preferred_output, non_preferred_output",
        frozenset({"input", "preferred_output", "non_preferred_output"}) | _MARGIN | _EXTRAS,
        preference.openai_preference,
        lambda row: _has(row, "input", "preferred_output", "non_preferred_output"),
    ),
    _format(
        "medicalgpt_old",
        "preference",
        "MedicalGPT before 2026: system, history, question, response_chosen, response_rejected",
        frozenset({"question", "response_chosen", "response_rejected"}) | _ASKED | _MARGIN | _EXTRAS,
        preference.medicalgpt_old,
        lambda row: _has(row, "question", "response_chosen", "response_rejected"),
    ),
    _format(
        "ranking",
        "preference",
        "LLaMA-Factory: conversations or instruction/input with chosen and rejected as turns",
        _CHAT | {"instruction", "prompt", "chosen", "rejected"} | _ASKED | _MARGIN | _EXTRAS,
        preference.ranking,
        lambda row: (
            _is_pair(row)
            and isinstance(row["chosen"], dict)
            and (_any_chat(row) or _is_text(row, "instruction"))
        ),
    ),
    _format(
        "medicalgpt",
        "preference",
        "MedicalGPT: conversations with chosen and rejected as text, tools beside them",
        _CHAT | {"instruction", "prompt", "chosen", "rejected"} | _ASKED | _MARGIN | _EXTRAS,
        preference.ranking,
        lambda row: _is_text(row, "chosen", "rejected") and (_any_chat(row) or _is_text(row, "instruction")),
    ),
    _format(
        "hh_rlhf",
        "preference",
        "HH-RLHF: chosen and rejected as whole dialogues of '\\n\\nHuman: ' and '\\n\\nAssistant: '",
        frozenset({"chosen", "rejected"}) | _MARGIN | _EXTRAS,
        preference.hh_rlhf,
        lambda row: _is_text(row, "chosen", "rejected") and row["chosen"].startswith("\n\nHuman:"),
    ),
    _format(
        "preference",
        "preference",
        "prompt, chosen, rejected (text or turns); or whole conversations whose common turns are the prompt",
        _CHAT
        | {"prompt", "question", "instruction", "query", "chosen", "rejected"}
        | _ASKED
        | _MARGIN
        | _EXTRAS,
        preference.preference,
        _is_pair,
    ),
    _format(
        "preference_implicit",
        "preference",
        "chosen and rejected as whole conversations; read under preference too",
        frozenset({"chosen", "rejected"}) | _SYSTEM | _MARGIN | _EXTRAS,
        preference.preference,
        lambda row: False,
    ),
    _format(
        "caregpt",
        "preference",
        "CareGPT: instruction, input, output: [chosen, rejected]",
        frozenset({"instruction", "output"}) | _ASKED | _MARGIN | _EXTRAS,
        preference.caregpt,
        lambda row: (
            _is_text(row, "instruction") and isinstance(row.get("output"), list) and len(row["output"]) == 2
        ),
    ),
    _format(
        "ultrafeedback",
        "preference",
        "UltraFeedback: instruction and scored completions; the best against each worse one, with margin",
        frozenset({"instruction", "prompt", "question", "completions"}) | _ASKED | _EXTRAS,
        preference.ultrafeedback,
        lambda row: isinstance(row.get("completions"), list) and isinstance(row["completions"][:1], list),
    ),
    _format(
        "ultrafeedback_pairs",
        "preference",
        "UltraFeedback: instruction and scored completions; every two of unequal score, with margin",
        frozenset({"instruction", "prompt", "question", "completions"}) | _ASKED | _EXTRAS,
        preference.ultrafeedback_pairs,
        lambda row: False,
    ),
    _format(
        "magpie_scored",
        "preference",
        "magpie: instruction, responses and rewards_*; the best against each worse one, with margin",
        frozenset({"instruction", "responses", "rewards_armorm"}) | _ASKED | _EXTRAS,
        preference.magpie_scored,
        lambda row: _has(row, "instruction", "responses") and any(k.startswith("rewards_") for k in row),
    ),
    _format(
        "kto",
        "preference",
        "one answer and its label (or kto_tag): messages, prompt/completion or alpaca fields",
        _CHAT
        | {
            "prompt",
            "question",
            "instruction",
            "query",
            "completion",
            "response",
            "output",
            "label",
            "kto_tag",
        }
        | _ASKED
        | _EXTRAS,
        preference.kto,
        lambda row: (
            str(row.get("label", row.get("kto_tag"))).lower() in ("true", "false")
            and (_any_chat(row) or _has(row, "completion") or _is_text(row, "instruction", "output"))
        ),
    ),
    _format(
        "self_instruct",
        "sft",
        "self-instruct seed tasks: instruction and instances of input/output",
        frozenset({"instruction", "instances"}),
        instruct.self_instruct,
        lambda row: _is_text(row, "instruction") and isinstance(row.get("instances"), list),
    ),
    _format(
        "sharegpt",
        "sft",
        "conversations of from/value (or role/content), function_call/observation turns, tools",
        _CHAT | _SYSTEM | _EXTRAS,
        instruct.sharegpt,
        lambda row: _is_chat(row, "conversations"),
    ),
    _format(
        "messages",
        "sft",
        "OpenAI messages: role/content (text or parts), tool_calls, reasoning_content, tools",
        _CHAT | _SYSTEM | _EXTRAS,
        instruct.chat,
        lambda row: _is_chat(row, "messages") and not _ends_asking(row),
    ),
    _format(
        "alpaca",
        "sft",
        "instruction, input, output, history of [question, answer], system, reasoning",
        frozenset({"instruction", "output", "reasoning"}) | _ASKED | _EXTRAS,
        instruct.alpaca,
        lambda row: _is_text(row, "instruction", "output"),
    ),
    _format(
        "magpie",
        "sft",
        "magpie: instruction and response, or several responses (a record each)",
        frozenset({"instruction", "response", "responses"}) | _ASKED | _EXTRAS,
        instruct.magpie,
        lambda row: (
            _is_text(row, "instruction")
            and (_is_text(row, "response") or isinstance(row.get("responses"), list))
            and "context" not in row  # dolly: a field that must not be passed over
        ),
    ),
    _format(
        "prompt_completion",
        "sft",
        "prompt and completion (or response), text or turns",
        frozenset({"prompt", "completion", "response"}) | _ASKED | _EXTRAS,
        instruct.prompt_completion,
        lambda row: _has(row, "prompt") and (_has(row, "completion") or _has(row, "response")),
    ),
    RecordFormat(
        "question_answer",
        ("sft", "prompt"),
        "question (or ask) and answer; in a prompt recipe the answer is the reference",
        frozenset({"question", "ask", "answer"}) | _ASKED | _EXTRAS,
        MappingProxyType({"sft": instruct.question_answer, "prompt": instruct.prompt}),
        lambda row: (_is_text(row, "question") or _is_text(row, "ask")) and _is_text(row, "answer"),
    ),
    _format(
        "prompt",
        "prompt",
        "a prompt (text or turns), question, problem or instruction, with reference, ground_truth, answer or solution",
        frozenset(instruct.PROMPTS)
        | frozenset(instruct.REFERENCES)
        | _CHAT
        | {"reward_model"}
        | _ASKED
        | _EXTRAS,
        instruct.prompt,
        lambda row: (
            not {"response", "completion", "output"} & row.keys()
            and (
                _is_turns(row.get("prompt"))
                or _ends_asking(row)
                or (_is_turns(row.get("messages")) and not _says(row["messages"], _ANSWERS))
                or any(isinstance(row.get(name), str) for name in instruct.PROMPTS)
            )
        ),
    ),
    _format(
        "text",
        "text",
        "text alone",
        frozenset({"text"}),
        instruct.text,
        lambda row: _is_text(row, "text"),
    ),
)
RECORD_FORMATS: Mapping[str, RecordFormat] = MappingProxyType({f.name: f for f in _ALL})


def native_kinds(format: str) -> tuple[RecordKind, ...]:
    """The native kinds of a format, the usual one first."""
    return RECORD_FORMATS[format].kinds


def can_become(kind_from: RecordKind, kind_to: RecordKind) -> bool:
    """Whether a record of one kind can be read as another: a pair as its prompt and better answer, either as a prompt."""
    return kind_from == kind_to or (kind_from, kind_to) in (
        ("preference", "sft"),
        ("preference", "prompt"),
        ("sft", "prompt"),
    )
