"""Masks against an independent oracle: the templates of TRL that mark what is trained with ``{% generation %}``.

For each pair of a published template and its marked twin, what datamix trains from the published one equals the
twin's marks, less what the generation prompt has already written and white space behind the stop.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import random
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import encode_batches as make
import pytest
from encode_batches import Message
from encode_tokenizers import byte_level, save
from tokenizers import AddedToken

pytestmark = pytest.mark.trainers

_TRL = importlib.util.find_spec("trl")
TEMPLATES = (
    Path(str(_TRL.origin)).parent / "chat_templates"
    if _TRL
    else Path("tests/trainers/requirements-formats.txt")
)
PAIRS = sorted(path.name.removesuffix("_training.jinja") for path in TEMPLATES.glob("*_training.jinja"))
if not PAIRS:
    pytest.skip("needs TRL's templates: make test-formats", allow_module_level=True)

NUM_CONVERSATIONS = 200
# Control tokens as templates spell them, and what looks like one but is text to the model's tokenizer.
CONTROL = re.compile(
    r'<\|?[A-Za-z_/:0-9]+\|?>|<\|[^|<>{} ]+\|>|<\|"\|>|<｜[^｜]+｜>|\[gMASK\]|\[/?(?:INST|[A-Z]+_[A-Z_]+)\]'
)
TEXT = {
    f"<{slash}{name}>"
    for slash in ("", "/")
    for name in [
        "tools",
        "IMPORTANT",
        "description",
        "enum",
        "function",
        "name",
        "parameter",
        "parameters",
        "required",
        "type",
        "SYS",
        "tool",
        "tool_output",
        "atem:function_calls",
        "atem:invoke",
        "atem:parameter",
    ]
}
STOPS = {  # eos_token where it is not <|im_end|>
    **dict.fromkeys(["cohere", "cohere2"], "<|END_OF_TURN_TOKEN|>"),
    **dict.fromkeys(["deepseek_r1_distill", "deepseekv3"], "<｜end▁of▁sentence｜>"),
    **dict.fromkeys(["diffusion_gemma", "gemma", "gemma3"], "<eos>"),
    **dict.fromkeys(["glm4moe", "phi3", "phi3_5"], "<|endoftext|>"),
    "gptoss": "<|return|>",
    "idefics3": "<|end_of_text|>",
    "llama3": "<|eot_id|>",
    "llava_next": "</s>",
    "muse_glimmer": "<|eot|>",
    "smolvlm": "<end_of_utterance>",
}
PARTS = {"idefics3", "llava_next", "smolvlm"}  # content only as a list of parts
ARGUMENTS_AS_TEXT = {"deepseekv3"}
WITHOUT_CALLS = {  # the template writes no calls: such records are dropped, the twin trains an empty turn
    *[
        "cohere",
        "cohere2",
        "deepseek_r1_distill",
        "gemma",
        "gemma3",
        "idefics3",
        "lfm2",
        "llama3",
        "llava_next",
        "phi3",
        "phi3_5",
    ],
    *["qwen2_5_vl", "smolvlm"],
}
FIRST_CALL_ONLY = {"gptoss"}  # of several calls in a turn it writes the first: such records are dropped
REWRITTEN = {"qwen3", "qwen3_5_nothink", "qwen3_5_think", "qwen3_6"}  # the twin keeps thoughts of history
# The model stops after a call at the token that opens the result (its generation_config names it as a stop).
STOP_OF_CALL = {"diffusion_gemma": "<|tool_response>"}

WORDS = ["hello", "世界你好", "a b", "1234", "Yes.", "x = {1: 2}", "good\nmorning", "no"]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": about,
            "parameters": {
                "type": "object",
                "properties": {
                    "q": {"type": "string", "description": "what"},
                    "n": {"type": "integer", "description": "how many"},
                },
                "required": ["q"],
            },
        },
    }
    for name, about in (("search", "Search"), ("price", "价格"))
]
KINDS = [
    "plain",
    "multi",
    "system",
    "tools",
    "parallel",
    "reasoning",
    "thinking_calls",
    "empty",
    "last_call",
    "last_result",
]


def text(chance: random.Random, borders: bool = True) -> str:
    words = " ".join(chance.choice(WORDS) for _ in range(chance.randint(1, 3)))
    before, after = (
        chance.choice(["\n", " ", "\n\n"]) if borders and chance.random() < 0.15 else "" for _ in "ab"
    )
    return before + words + after


def conversation(chance: random.Random, kind: str) -> tuple[list[Message], list[Any] | None]:
    """Messages and tools of one kind: with white space at borders, Chinese, empty content beside calls."""
    messages = [make.system(text(chance))] if kind == "system" or chance.random() < 0.25 else []
    tools = TOOLS if kind in ("tools", "parallel", "thinking_calls", "last_call", "last_result") else None
    rounds = 1 if kind == "plain" else chance.randint(1, 3)
    for place in range(rounds):
        messages.append(make.user(text(chance)))
        if tools is not None and add_calls(messages, chance, kind, place == rounds - 1):
            continue
        content = "" if kind == "empty" and chance.random() < 0.5 else text(chance)
        thinks = kind in ("reasoning", "thinking_calls") and chance.random() < 0.8
        messages.append(make.assistant(content, **({"reasoning": text(chance, False)} if thinks else {})))
    return messages, tools


def add_calls(messages: list[Message], chance: random.Random, kind: str, is_last: bool) -> bool:
    """Add turns of calls and their results; whether the round ends with them."""
    for _ in range(chance.randint(1, 2)):
        arguments = [
            {"q": text(chance, False)},
            {"q": text(chance, False), "n": chance.randint(0, 9)},
            {"n": 3},
        ]
        calls = [
            make.call(
                chance.choice(["search", "price"]), chance.choice(arguments), f"call{len(messages):04}{n}"
            )
            for n in range(2 if kind == "parallel" else 1)
        ]
        content = "" if kind == "thinking_calls" else chance.choice(["", "", text(chance)])
        thought = {"reasoning": text(chance, False)} if kind == "thinking_calls" else {}
        messages.append(make.assistant(content, tool_calls=calls, **thought))
        if is_last and kind == "last_call":
            return True
        for call in calls:
            messages.append(make.tool(text(chance), tool_call_id=call["id"], name=call["function"]["name"]))
    return is_last and kind == "last_result"


@cache
def compiled(name: str) -> Any:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))


def folder(name: str, root: Path) -> Path:
    """A tokenizer with the control tokens of a template."""
    template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    code = re.sub(r"\{#.*?#\}", "", template, flags=re.DOTALL)
    tokens = {*CONTROL.findall(code), eos(name), "<bos>"} - TEXT
    tokenizer = byte_level()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in sorted(tokens)]
    )
    return save(tokenizer, root / name, template, {"bos_token": "<bos>", "eos_token": eos(name)})


def eos(name: str) -> str:
    return STOPS.get(name, "<|im_end|>")


def as_given(messages: list[Message], name: str) -> list[Message]:
    """The messages as transformers is given them."""
    given = json.loads(json.dumps(messages))
    for message in given:
        if "reasoning" in message:
            message["reasoning_content"] = message["thinking"] = message.pop("reasoning")
        if name in PARTS:
            message["content"] = [{"type": "text", "text": message["content"]}]
        for call in message.get("tool_calls", []) if name in ARGUMENTS_AS_TEXT else []:
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return given


def values(name: str, messages: list[Message], tools: Any, generation_prompt: bool = False) -> dict[str, Any]:
    day = datetime.datetime(2024, 7, 26).strftime
    return {
        "messages": messages,
        "tools": tools,
        "documents": None,
        "add_generation_prompt": generation_prompt,
        "bos_token": "<bos>",
        "eos_token": eos(name),
        "strftime_now": day,
    }


def marked(name: str, messages: list[Message], tools: Any) -> tuple[str, list[str]]:
    """The twin's text, and each marked stretch less the generation prompt and white space behind it."""
    from transformers.utils.chat_template_utils import _render_with_assistant_indices as render

    given = as_given(messages, "" if name in ARGUMENTS_AS_TEXT else name)  # the twin writes objects as JSON
    arguments = values(name, given, tools)
    whole, marks = render(compiled(f"{name}_training"), **arguments)
    spans: list[list[int]] = []
    for start, end in marks:
        if spans and spans[-1][1] == start:
            spans[-1][1] = end
        else:
            spans.append([start, end])
    prompts, borders = generation_prompts(name, as_given(messages, name), tools, whole)
    stretches = []
    for start, end in spans:
        begin = start + max(written(whole, start, end, prompt) for prompt in prompts)
        begin = max([begin, *(border for border in borders if begin < border < end)][:2])
        stretches.append(whole[begin:end].rstrip())
    return whole, [stretch for stretch in stretches if stretch]


def generation_prompts(
    name: str, messages: list[Message], tools: Any, whole: str
) -> tuple[set[str], list[int]]:
    """What the published template writes as the prompt for an answer, and where such a prompt ends in ``whole``."""
    prompts, borders = {""}, []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        try:
            with_prompt, without = (
                str(compiled(name).render(values(name, messages[:place], tools, flag)))
                for flag in (True, False)
            )
        except Exception:  # a template refuses a conversation that begins with an answer
            continue
        if whole.startswith(with_prompt):
            borders.append(len(with_prompt))
        prompts.add(with_prompt[snapped(with_prompt, shared_length(with_prompt, without)) :])
    return prompts, borders


def shared_length(a: str, b: str) -> int:
    differing = (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differing, min(len(a), len(b)))


def snapped(text: str, place: int) -> int:
    """``place``, or the start of the control token that it is in."""
    inside = (token.start() for token in CONTROL.finditer(text) if token.start() < place < token.end())
    return next(inside, place)


def written(whole: str, start: int, end: int, prompt: str) -> int:
    """How much of ``whole[start:end]`` a generation prompt that begins at or before ``start`` has written."""
    best = 0
    for before in range(len(prompt) + 1):
        if whole[max(0, start - before) : start] != prompt[:before]:
            continue
        best = max(best, snapped(whole[start:end], shared_length(whole[start:end], prompt[before:])))
    return best


def test_there_are_about_thirty_pairs() -> None:
    assert len(PAIRS) >= 28


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_trained_is_what_the_marked_twin_marks(name: str, tmp_path: Path) -> None:
    encoder, chance = make.encoder(folder(name, tmp_path)), random.Random(7)
    counts: Counter[str] = Counter()
    for number in range(NUM_CONVERSATIONS):
        kind = KINDS[number % len(KINDS)]
        messages, tools = conversation(chance, kind)
        row = encoder.encode(make.sft([messages], tools), "sft")[0].to_pylist()[0]
        try:
            published = compiled(name).render(values(name, as_given(messages, name), tools))
        except Exception:  # the template refuses the conversation (roles, tools): so do we
            assert row["reason"] == "template", messages
            counts["refused"] += 1
            continue
        if row["reason"] == "template":
            calls = [message["tool_calls"] for message in messages if "tool_calls" in message]
            are_several = name in FIRST_CALL_ONLY and any(len(turn) > 1 for turn in calls)
            assert calls if name in WITHOUT_CALLS else are_several, messages
            counts["refused"] += 1
            continue
        whole, expected = marked(name, messages, tools)
        trained = make.trained_text(encoder, row)
        stop = STOP_OF_CALL.get(name)
        if stop:
            trained = [stretch.removesuffix(stop) for stretch in trained]
        if name in REWRITTEN and published != whole:
            assert len(trained) == len(expected), messages
            pairs = zip(trained, expected, strict=True)
            assert all(theirs.endswith(ours) for ours, theirs in pairs), messages
            counts["ends of the twin's"] += 1
        else:
            assert trained == expected, messages
            counts["equal"] += 1
    assert counts["equal"] + counts["ends of the twin's"] >= NUM_CONVERSATIONS // 4
