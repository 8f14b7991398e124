"""Every record format that is known: what its rows are, how to recognise one, and which readers make records of it.

The order is the order of recognition: where two formats fit a row, the more specific one comes first. What fits only
``prompt`` or ``text`` is tried last, under other names of fields too (``detect``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from datamix.core.records import RecordKind
from datamix.formats import instruct, preference, traces
from datamix.formats.drafts import Draft, ForeignRow, TurnNames
from datamix.formats.turns import PLAIN, ROLE_KEYS, ROLES, is_turns, role_of

Reader = Callable[[ForeignRow, TurnNames], list[Draft]]

_EXTRAS = {"tools", "functions", "chat_template_kwargs"}
_SYSTEM = set(instruct.SYSTEMS)
_ASKED = _SYSTEM | _EXTRAS | {"history", "input"}
_SCORES = {"margin", *(field for pair in preference.SCORES for field in pair)}
_CHAT = set(instruct.CHATS)
_PAIR = {"chosen", "rejected"} | _SCORES
_ANSWER_WORDS = [word for word, role in ROLES.items() if role in ("assistant", "call")]


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
    fields: set[str],
    reader: Reader,
    fits: Callable[[ForeignRow], bool],
) -> RecordFormat:
    return RecordFormat(name, (kind,), doc, frozenset(fields), MappingProxyType({kind: reader}), fits)


def _is_text(row: ForeignRow, *names: str) -> bool:
    return all(isinstance(row.get(name), str) for name in names)


def _has(row: ForeignRow, *names: str) -> bool:
    return all(row.get(name) is not None for name in names)


def _is_chat(value: Any) -> bool:
    return value.lstrip()[:2] in ("[{", "[]") if isinstance(value, str) else is_turns(value)


def _is_answered(value: Any) -> bool:
    """Whether a conversation has an assistant turn."""
    if isinstance(value, str):
        return _is_chat(value) and any(f'"{word}"' in value for word in _ANSWER_WORDS)
    return is_turns(value) and any(
        not isinstance(turn, dict)
        or role_of(turn, PLAIN) in ("assistant", "call")
        or not any(key in turn for key in ROLE_KEYS)
        for turn in value
    )


def _is_asked(value: Any) -> bool:
    """Whether a conversation ends with a question, as far as its text or roles show."""
    if isinstance(value, str):
        return _is_chat(value) and not _is_answered(value)
    last = value[-1] if is_turns(value) else None
    return isinstance(last, dict) and role_of(last, PLAIN) in ("user", "system", "tool")


def _any_chat(row: ForeignRow) -> bool:
    return _is_chat(row.get("messages")) or _is_chat(row.get("conversations"))


def _is_ranked(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(isinstance(answer, str) for answer in value)


def _ends_asking(row: ForeignRow) -> bool:
    """A conversation that ends with the user, and a reference beside it."""
    value = row.get("messages")
    if not isinstance(value, list) or not value or not isinstance(value[-1], dict):
        return False
    return value[-1].get("role") == "user" and any(_has(row, name) for name in instruct.REFERENCES)


_PREFERENCE = (
    _format(
        "paired_messages",
        "preference",
        "LLaMA-Factory v1: chosen_messages and rejected_messages, two whole conversations",
        {"chosen_messages", "rejected_messages"} | _SYSTEM | _SCORES | _EXTRAS,
        preference.paired_messages,
        lambda row: _has(row, "chosen_messages", "rejected_messages"),
    ),
    _format(
        "rejected_response",
        "preference",
        "ms-swift: messages ending in the better answer, and rejected_response or rejected_messages",
        _CHAT | {"rejected_response", "rejected_messages"} | _SYSTEM | _SCORES | _EXTRAS,
        preference.rejected_response,
        lambda row: _any_chat(row) and (_has(row, "rejected_response") or _has(row, "rejected_messages")),
    ),
    _format(
        "openai_preference",
        "preference",
        "OpenAI preference fine-tuning: input of messages and tools, preferred_output, non_preferred_output",
        {"input", "preferred_output", "non_preferred_output"} | _SCORES | _EXTRAS,
        preference.openai_preference,
        lambda row: _has(row, "input", "preferred_output", "non_preferred_output"),
    ),
    _format(
        "medicalgpt_old",
        "preference",
        "MedicalGPT before 2026: system, history, question, response_chosen, response_rejected",
        {"question", "response_chosen", "response_rejected"} | _ASKED | _SCORES,
        preference.medicalgpt_old,
        lambda row: _has(row, "question", "response_chosen", "response_rejected"),
    ),
    _format(
        "ranking",
        "preference",
        "LLaMA-Factory: conversations or instruction/input with chosen and rejected as turns",
        _CHAT | _PAIR | {"instruction", "prompt"} | _ASKED,
        preference.ranking,
        lambda row: (
            _has(row, "chosen", "rejected")
            and isinstance(row["chosen"], dict)
            and (_any_chat(row) or _is_text(row, "instruction"))
        ),
    ),
    _format(
        "medicalgpt",
        "preference",
        "MedicalGPT: conversations with chosen and rejected as text, tools beside them",
        _CHAT | _PAIR | {"instruction", "prompt"} | _ASKED,
        preference.ranking,
        lambda row: _is_text(row, "chosen", "rejected") and (_any_chat(row) or _is_text(row, "instruction")),
    ),
    _format(
        "hh_rlhf",
        "preference",
        "HH-RLHF: chosen and rejected as whole dialogues of '\\n\\nHuman: ' and '\\n\\nAssistant: '",
        _PAIR | _EXTRAS,
        preference.hh_rlhf,
        lambda row: _is_text(row, "chosen", "rejected") and row["chosen"].startswith("\n\nHuman:"),
    ),
    _format(
        "preference",
        "preference",
        "prompt, chosen, rejected (text or turns); or whole conversations whose common turns are the prompt",
        _CHAT | _PAIR | set(preference.PROMPTS) | _ASKED,
        preference.preference,
        lambda row: _has(row, "chosen", "rejected"),
    ),
    _format(
        "preference_implicit",
        "preference",
        "chosen and rejected as whole conversations; read under preference too",
        _PAIR | _SYSTEM | _EXTRAS,
        preference.preference,
        lambda row: False,
    ),
    *(
        _format(
            name,
            "preference",
            f"ranked answers: instruction or prompt, output or response: [best, ..., worst]; {which}",
            set(preference.PROMPTS) | {"output", "response"} | _ASKED | _SCORES,
            reader,
            fits,
        )
        for name, which, reader, fits in (
            (
                "caregpt",
                "the first against the second",
                preference.caregpt,
                lambda row: (
                    any(isinstance(row.get(name), str) for name in preference.PROMPTS)
                    and (_is_ranked(row.get("output")) or _is_ranked(row.get("response")))
                ),
            ),
            (
                "caregpt_extremes",
                "the first against the last",
                preference.caregpt_extremes,
                lambda row: False,
            ),
            ("caregpt_pairs", "each against those after it", preference.caregpt_pairs, lambda row: False),
        )
    ),
    _format(
        "judged",
        "preference",
        "two answers and a verdict: SafeRLHF, HelpSteer, arena votes",
        {name for pair in preference.JUDGED for name in pair}
        | {"winner", *preference.SIGNED, *(name for name, _ in (*preference.INDEXED, *preference.FLAGGED))}
        | {*preference.PROMPTS, "context"}
        | _ASKED
        | _SCORES,
        preference.judged,
        lambda row: (
            any(_has(row, *pair) for pair in preference.JUDGED)
            and any(
                row.get(name) is not None
                for name in (
                    "winner",
                    *preference.SIGNED,
                    *dict(preference.INDEXED),
                    *dict(preference.FLAGGED),
                )
            )
        ),
    ),
    _format(
        "ultrafeedback",
        "preference",
        "UltraFeedback: instruction and scored completions; the best against each worse one, with margin",
        {"instruction", "prompt", "question", "completions"} | _ASKED,
        preference.ultrafeedback,
        lambda row: isinstance(row.get("completions"), list),
    ),
    _format(
        "ultrafeedback_pairs",
        "preference",
        "UltraFeedback: instruction and scored completions; every two of unequal score, with margin",
        {"instruction", "prompt", "question", "completions"} | _ASKED,
        preference.ultrafeedback_pairs,
        lambda row: False,
    ),
    _format(
        "magpie_scored",
        "preference",
        "magpie: instruction, responses and rewards_*; the best against each worse one, with margin",
        {"instruction", "responses", "rewards_armorm"} | _ASKED,
        preference.magpie_scored,
        lambda row: _has(row, "instruction", "responses") and any(k.startswith("rewards_") for k in row),
    ),
    _format(
        "kto",
        "preference",
        "one answer and its label (or kto_tag): messages, prompt/completion or alpaca fields",
        _CHAT | set(preference.PROMPTS) | {"completion", "response", "output", "label", "kto_tag"} | _ASKED,
        preference.kto,
        lambda row: (
            str(row.get("label", row.get("kto_tag"))).lower() in ("true", "false")
            and (_any_chat(row) or _has(row, "completion") or _is_text(row, "instruction", "output"))
        ),
    ),
)
_SFT = (
    *(
        _format(name, "sft", doc, fields | _SYSTEM | _EXTRAS, reader, fits)
        for name, doc, fields, reader, fits in traces.FORMATS
    ),
    _format(
        "self_instruct",
        "sft",
        "self-instruct seed tasks: instruction and instances of input/output",
        {"instruction", "instances"},
        instruct.self_instruct,
        lambda row: _is_text(row, "instruction") and isinstance(row.get("instances"), list),
    ),
    _format(
        "responses",
        "sft",
        "OpenAI Responses: instructions, input and output as items (messages, calls, reasoning) or text",
        {"input", "output", "instructions"} | _EXTRAS,
        instruct.responses,
        lambda row: (
            (isinstance(row.get("output"), list) or is_turns(row.get("input")))
            and all(
                isinstance(row.get(name), str) or traces.holds_objects(row, name, "type", "role")
                for name in ("input", "output")
            )
        ),
    ),
    _format(
        "xlam",
        "sft",
        "xLAM: query, answers (the calls) and tools",
        {"query", "answers"} | _ASKED,
        instruct.xlam,
        lambda row: _is_text(row, "query") and _has(row, "answers", "tools"),
    ),
    _format(
        "sharegpt",
        "sft",
        "conversations of from/value (or role/content), function_call/observation turns, tools",
        _CHAT | _SYSTEM | _EXTRAS,
        instruct.sharegpt,
        lambda row: _is_answered(row.get("conversations")),
    ),
    _format(
        "messages",
        "sft",
        "OpenAI messages: role/content (text or parts), tool_calls, reasoning_content, tools",
        _CHAT | _SYSTEM | _EXTRAS,
        instruct.chat,
        lambda row: _is_answered(row.get("messages")) and not _ends_asking(row),
    ),
    _format(
        "alpaca",
        "sft",
        "instruction, input, output, history of [question, answer], system, reasoning",
        {"instruction", "output", "reasoning"} | _ASKED,
        instruct.alpaca,
        lambda row: _is_text(row, "instruction", "output"),
    ),
    _format(
        "magpie",
        "sft",
        "magpie: instruction and response, or several responses (a record each)",
        {"instruction", "response", "responses"} | _ASKED,
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
        {"prompt", "completion", "response"} | _ASKED,
        instruct.prompt_completion,
        lambda row: _has(row, "prompt") and (_has(row, "completion") or _has(row, "response")),
    ),
    RecordFormat(
        "question_answer",
        ("sft", "prompt"),
        "question (or ask) and answer; in a prompt recipe the answer is the reference",
        frozenset({"question", "ask", "answer"} | _ASKED),
        MappingProxyType({"sft": instruct.question_answer, "prompt": instruct.prompt}),
        lambda row: (_is_text(row, "question") or _is_text(row, "ask")) and _is_text(row, "answer"),
    ),
)
_LAST = (
    _format(
        "prompt",
        "prompt",
        "a prompt (text or turns), question, problem or instruction, with reference, ground_truth, answer or solution",
        {*instruct.PROMPTS, *instruct.REFERENCES, "reward_model"} | _CHAT | _ASKED,
        instruct.prompt,
        lambda row: (
            not {"response", "completion", "output"} & row.keys()
            and (
                _is_chat(row.get("prompt"))
                or _ends_asking(row)
                or _is_asked(row.get("messages"))
                or any(isinstance(row.get(name), str) for name in instruct.PROMPTS)
            )
        ),
    ),
    _format("text", "text", "text alone", {"text"}, instruct.text, lambda row: _is_text(row, "text")),
)
LAST = tuple(format.name for format in _LAST)
RECORD_FORMATS: Mapping[str, RecordFormat] = MappingProxyType(
    {format.name: format for format in (*_PREFERENCE, *_SFT, *_LAST)}
)


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
