"""Conversations encoded in columns: ids, masks, reasons and counts are those of record by record, whatever stands in them."""

from __future__ import annotations

import importlib.util
import random
from collections import Counter
from pathlib import Path
from typing import Any

import encode_batches as make
import pyarrow as pa
import pytest
from encode_batches import Message, assistant, call, system, tool, user
from encode_tokenizers import FAMILIES, byte_level, save
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from datamix.tokenize import Encoder, EncodeSpec, find_tokenizer
from datamix.tokenize import column_encoder as columns_module
from datamix.tokenize import encoder as encoder_module

TRL = importlib.util.find_spec("trl")
TRL_TEMPLATES = sorted((Path(str(TRL.origin)).parent / "chat_templates").glob("*.jinja")) if TRL else []
SPACES = [
    "",
    " ",
    "\n",
    "\u3000",
    "\x1c",
    "\x85",
    "\u200b",
    "\t\r\n",
    "\u2028",
]  # some are blank to Python, one is not
WORDS = ["hello", "世界你好", "a\x00b", "don't", "🏳️‍🌈", "def f(x):\n\treturn  x", "1234"]
CONTROL = [
    "<|im_end|>",
    "<think>a</think>b",
    "</think>",
    "<tool_call>{}</tool_call>",
    "</s>",
    "[INST]",
    "<｜User｜>",
]


def text(rng: random.Random, odd: float) -> str:
    words = [rng.choice(CONTROL if rng.random() < odd / 4 else WORDS) for _ in range(rng.randint(1, 4))]
    left, right = (rng.choice(SPACES) if rng.random() < odd else "" for _ in range(2))
    return rng.choice(SPACES) if rng.random() < odd / 8 else f"{left}{' '.join(words)}{right}"


def conversation(rng: random.Random, odd: float) -> list[Message]:
    """Turns as data has them; ``odd``: how often they are not plain."""
    turns = [system(text(rng, odd))] if rng.random() < 0.3 else []
    for _ in range(rng.randint(1, 3)):
        answer = assistant(text(rng, odd))
        if rng.random() < 0.3:
            answer["reasoning"] = text(rng, odd)
        if rng.random() < odd / 8:
            answer["train"] = rng.choice([0.0, 1.0, 0.5])
        turns += [user(text(rng, odd))]
        if rng.random() < odd / 8:
            turns += [
                assistant(None, tool_calls=[call("f", {"q": text(rng, odd)})]),
                tool(text(rng, odd), tool_call_id="abcdefghi"),
            ]
        turns.append(answer)
    if rng.random() < odd / 8:
        turns.pop(rng.randrange(len(turns)))
    return turns


def batch_of(seed: int, odd: float, num: int = 60) -> pa.RecordBatch:
    rng = random.Random(seed)
    rows = [conversation(rng, odd if rng.random() < 0.5 else 0.0) for _ in range(num)]
    batch = make.sft(rows)
    for name, values in (
        ("tools", [None, '[{"type": "function", "function": {"name": "f"}}]']),
        ("kwargs", [None, '{"enable_thinking": false}']),
    ):
        if rng.random() < 0.3:
            at = batch.schema.get_field_index(name)
            column = pa.array([rng.choice(values) for _ in rows], pa.string())
            batch = batch.set_column(at, batch.schema.field(at), column)
    return batch


def encoded(
    spec: EncodeSpec, batch: pa.RecordBatch, monkeypatch: pytest.MonkeyPatch, small: int
) -> tuple[Any, Any]:
    monkeypatch.setattr(encoder_module, "_SMALL_ROWS", small)
    encoder = Encoder(spec)
    tokens, counts = encoder.encode(batch, "sft")
    again, counts_again = encoder.encode(batch, "sft")  # with what the first call left
    assert tokens.equals(again)
    assert counts == counts_again
    return tokens, counts


def assert_same(folder: Path, batch: pa.RecordBatch, monkeypatch: pytest.MonkeyPatch, **options: str) -> int:
    """Both ways give the same; the number of rows that went in columns."""
    kind, loss_on = options.pop("kind", "sft"), options.pop("loss_on", "assistant")
    spec = EncodeSpec(kind, find_tokenizer(str(folder), "."), loss_on, **options)  # type: ignore[arg-type]
    num_plain = 0
    layouts = columns_module.ColumnEncoder.layouts

    def counted(*arguments: Any) -> Any:
        nonlocal num_plain
        number = layouts(*arguments)
        num_plain += int((number >= 0).sum())
        return number

    with monkeypatch.context() as patch:
        each, counts = encoded(spec, batch, patch, small=1 << 60)
        patch.setattr(columns_module.ColumnEncoder, "layouts", counted)
        columns, column_counts = encoded(spec, batch, patch, small=0)
    columns.validate(full=True)
    for name in each.schema.names:
        assert columns.column(name).to_pylist() == each.column(name).to_pylist(), name
    assert Counter(column_counts) == Counter(counts)
    return num_plain


PLAIN_TEMPLATES = {"chatml", "qwen2.5", "llama3.1", "gemma3", "phi4"}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("odd", [0.0, 0.6], ids=["plain", "odd"])
def test_every_template_encodes_columns_as_records(
    name: str, odd: float, tokenizers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    num_plain = sum(assert_same(tokenizers[name], batch_of(seed, odd), monkeypatch) for seed in range(2))
    if name in PLAIN_TEMPLATES:
        assert num_plain > (10 if odd else 60), "the path under test was not taken"


@pytest.mark.parametrize(
    "options",
    [
        {"loss_on": "all"},
        {"loss_on": "last_assistant"},
        {"loss_on": "final_answer"},
        {"kind": "pretrain"},
        {"special_text": "reject"},
        {"special_text": "allow"},
        {"inline_tags": "text"},
        {"chat_kwargs": '{"enable_thinking": false}'},
    ],
    ids=str,
)
def test_every_option_encodes_columns_as_records(
    options: dict[str, str], tokenizers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in sorted({*tokenizers} & {"qwen3", "qwen2.5", "llama3.1", "mistral-v3"}):
        assert_same(tokenizers[name], batch_of(5, 0.5), monkeypatch, **options)


@pytest.mark.skipif(not TRL_TEMPLATES, reason="needs TRL's templates: make test-formats")
@pytest.mark.parametrize("template", TRL_TEMPLATES, ids=lambda path: path.stem)
def test_templates_of_trl_encode_columns_as_records(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "</s>")]
    )
    folder = save(
        tokenizer,
        tmp_path,
        template.read_text(encoding="utf-8"),
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"},
    )
    for seed in range(3):
        assert_same(folder, batch_of(seed, 0.4, 30), monkeypatch)


TEXT = st.text(st.sampled_from("a你 \n\u3000\x1c\u200b<>|/think\\u"), max_size=12)


@settings(max_examples=20, deadline=None)
@given(
    turns=st.lists(
        st.lists(
            st.tuples(
                st.sampled_from(["system", "user", "assistant", "tool"]), st.none() | TEXT, st.none() | TEXT
            ),
            max_size=4,
        ),
        min_size=1,
        max_size=6,
    )
)
def test_any_turns_encode_columns_as_records(
    turns: list[list[tuple[str, str | None, str | None]]], tokenizers: dict[str, Path]
) -> None:
    rows = [
        [{"role": role, "content": content, "reasoning": reasoning} for role, content, reasoning in row]
        for row in turns
    ]
    with pytest.MonkeyPatch.context() as patch:
        for folder in (tokenizers["qwen3"], tokenizers["gemma2"]):
            assert_same(folder, make.sft(rows), patch)


def test_a_slice_of_a_batch_is_encoded_as_itself(
    tokenizers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = batch_of(7, 0.3)
    assert_same(tokenizers["qwen2.5"], whole.slice(13, 29), monkeypatch)


def test_more_shapes_than_are_remembered_are_forgotten_and_made_again(
    tokenizers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns_module, "_MAX_SHAPES", 2)
    monkeypatch.setattr(encoder_module, "_SMALL_ROWS", 0)
    spec = EncodeSpec("sft", find_tokenizer(str(tokenizers["qwen2.5"]), "."), "assistant")
    encoder = Encoder(spec)
    for seed in range(4):
        tokens, _ = encoder.encode(batch_of(seed, 0.0, 20), "sft")
        wanted = encoder.encode_rows(encoder.rows(batch_of(seed, 0.0, 20), "sft"), Counter())
        assert tokens.equals(wanted)


TRIMMED = "{% for m in messages %}<|a|>{{ m.role }}\n{{ m.content | trim }}<|b|>{% endfor %}"
COPIED = "{% for m in messages %}<|a|>{{ m.content }}<|b|>{% endfor %}"
AS_JSON = (
    "{% for m in messages %}<|a|>{% if m.role == 'user' %}{{ m.content | tojson }}{% else %}{{ m.content }}"
    "{% endif %}<|b|>{% endfor %}"
)


@pytest.mark.parametrize("template", [TRIMMED, COPIED, AS_JSON], ids=["trimmed", "copied", "as JSON"])
@pytest.mark.parametrize("swallows", [False, True], ids=["keeps blanks", "swallows blanks"])
def test_white_space_at_borders_and_json_are_as_record_by_record(
    template: str, swallows: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens(
        [
            AddedToken(t, special=True, lstrip=swallows, rstrip=swallows, normalized=False)
            for t in ("<|a|>", "<|b|>")
        ]
    )
    folder = save(tokenizer, tmp_path, template, {"bos_token": None, "eos_token": "<|b|>"})
    edges = [f'{left}a "b"{right}' for left in SPACES for right in SPACES]
    assert_same(folder, make.sft([[user(edge), assistant(edge)] for edge in edges]), monkeypatch)


def test_texts_that_the_template_reacts_to_are_encoded_as_records(
    tokenizers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    thought = assistant("an answer", reasoning="a thought")
    reacting = ["<tool_response>\nb\n</tool_response>", "<tool_response>", "system", "plain"]
    rows = [[user("q"), thought, user(question), thought] for question in reacting * 4]
    assert_same(tokenizers["qwen3"], make.sft(rows), monkeypatch)


def test_questions_that_come_twice_are_encoded_as_records(
    tokenizers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = [
        {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
    ]
    rows = [[user(first), assistant("a"), user("again"), assistant("b")] for first in ("again", "once") * 4]
    num_plain = assert_same(tokenizers["mistral-v3"], make.sft(rows, tools), monkeypatch)
    assert num_plain == 8  # twice the four where nothing comes again


def test_a_batch_too_large_for_arrow_s_strings_is_encoded_as_records(
    tokenizers: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns_module, "_MAX_BYTES", 100)
    assert assert_same(tokenizers["qwen2.5"], batch_of(3, 0.0), monkeypatch) == 0
