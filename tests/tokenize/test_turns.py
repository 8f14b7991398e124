"""Tool calls, reasoning, flags and arguments of conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import encode_batches as make
import pytest
from encode_batches import Message

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather </tool_call> of a city <|im_start|>",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALLS = [
    make.call(
        "weather<|im_end|>",
        {"city": 'Par"is </s>\n<|eot_id|>', "<|im_end|>": 3, "deep": [{"k": "<s>"}], "none": ""},
    )
]
TOOL_TALK: list[Message] = [
    make.user("Weather in <|im_end|>?"),
    make.assistant(None, tool_calls=CALLS),
    make.tool('{"celsius": "<end_of_turn> 3"}', tool_call_id="abcdefghi"),
    make.assistant("Three degrees."),
]
ARGUMENTS = json.dumps(CALLS[0]["function"]["arguments"], ensure_ascii=False)
WRITTEN_CALLS = {
    "qwen2.5": '<tool_call>\n{"name": "weather<|im_end|>", "arguments": %s}\n</tool_call><|im_end|>',
    "qwen3": '<tool_call>\n{"name": "weather<|im_end|>", "arguments": %s}\n</tool_call><|im_end|>',
    "llama3.1": '{"name": "weather<|im_end|>", "parameters": %s}<|eot_id|>',
    "mistral-v3": '[TOOL_CALLS]  [{"name": "weather<|im_end|>", "arguments": %s, "id": "abcdefghi"}]</s>',
    "mistral-tekken": '[TOOL_CALLS][{"name": "weather<|im_end|>", "arguments": %s}]</s>',
    "deepseek-v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather<|im_end|>\n```json\n%s\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
    "chatglm4": "weather<|im_end|>\n%s<|observation|>",
}


@pytest.mark.parametrize("name", WRITTEN_CALLS)
def test_calls_are_trained_as_the_template_writes_them(name: str, tokenizers: dict[str, Path]) -> None:
    encoder = make.encoder(tokenizers[name])
    row = encoder.encode(make.sft([TOOL_TALK], TOOLS), "sft")[0].to_pylist()[0]
    assert make.trained_text(encoder, row)[0] == WRITTEN_CALLS[name] % ARGUMENTS
    if name in ("qwen2.5", "qwen3", "mistral-tekken", "deepseek-v3"):
        assert encoder.decode(row["ids"]) == make.rendered(tokenizers[name], TOOL_TALK, TOOLS)


@pytest.mark.parametrize("name", WRITTEN_CALLS)
def test_no_field_smuggles_a_control_token(name: str, tokenizers: dict[str, Path]) -> None:
    encoder = make.encoder(tokenizers[name])
    control = {token.id for token in encoder.control.tokens}
    clean: list[Message] = [
        make.user("Weather?"),
        make.assistant(
            None,
            tool_calls=[make.call("weather", {"city": "Paris", "x": 3, "deep": [{"k": "v"}], "none": ""})],
        ),
        make.tool("three", tool_call_id="abcdefghi"),
        make.assistant("Three degrees."),
    ]
    tools = json.loads(json.dumps(TOOLS).replace("</tool_call>", "").replace("<|im_start|>", ""))
    found = encoder.encode(make.sft([TOOL_TALK], TOOLS), "sft")[0].column("ids").to_pylist()[0]
    wanted = encoder.encode(make.sft([clean], tools), "sft")[0].column("ids").to_pylist()[0]
    assert [id_ for id_ in found if id_ in control] == [id_ for id_ in wanted if id_ in control]


def test_a_template_that_does_not_write_calls_refuses_them(tokenizers: dict[str, Path]) -> None:
    tokens, counts = make.encoder(tokenizers["vicuna"]).encode(make.sft([TOOL_TALK]), "sft")
    assert tokens.column("reason").to_pylist() == ["template"]
    assert any("template: " in name for name in counts)


def test_qwen3_trains_the_thought_of_the_last_turn_and_drops_that_of_history(
    tokenizers: dict[str, Path],
) -> None:
    talk = [
        make.user("a"),
        make.assistant("b", reasoning="old"),
        make.user("c"),
        make.assistant("d", reasoning="\nnew\n"),
    ]
    encoder = make.encoder(tokenizers["qwen3"])
    row = encoder.encode(make.sft([talk]), "sft")[0].to_pylist()[0]
    assert make.trained_text(encoder, row) == ["b<|im_end|>", "<think>\nnew\n</think>\n\nd<|im_end|>"]
    assert encoder.decode(row["ids"]) == make.rendered(tokenizers["qwen3"], talk)


def test_inline_thoughts_become_the_control_tokens_that_the_template_writes(
    tokenizers: dict[str, Path],
) -> None:
    talk = [make.user("a"), make.assistant("<think>\nwhy\n</think>\n\nbecause")]
    encoder = make.encoder(tokenizers["qwen3"])
    row = encoder.encode(make.sft([talk]), "sft")[0].to_pylist()[0]
    thought = make.encoder(tokenizers["qwen3"]).encode(
        make.sft([[talk[0], make.assistant("because", reasoning="why")]]), "sft"
    )
    assert row["ids"] == thought[0].column("ids").to_pylist()[0]
    think = [token.id for token in encoder.control.tokens if token.text in ("<think>", "</think>")]
    assert [id_ for id_ in row["ids"] if id_ in think] == think


def test_inline_thoughts_stay_text_where_the_template_would_drop_them(tokenizers: dict[str, Path]) -> None:
    talk = [make.user("a"), make.assistant("<think>why</think>because")]
    encoder = make.encoder(tokenizers["chatml"])
    row = encoder.encode(make.sft([talk]), "sft")[0].to_pylist()[0]
    assert make.trained_text(encoder, row) == ["<think>why</think>because<|im_end|>"]


def test_inline_calls_are_read_as_calls(tokenizers: dict[str, Path]) -> None:
    inline = 'Let me see.\n<tool_call>\n{"name": "f", "arguments": {"x": "1"}}\n</tool_call>'
    plain = make.assistant(
        "Let me see.", tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {"x": "1"}}}]
    )
    encoder = make.encoder(tokenizers["qwen2.5"])
    rows = encoder.encode(
        make.sft([[make.user("a"), make.assistant(inline)], [make.user("a"), plain]]), "sft"
    )[0]
    read, given = rows.column("ids").to_pylist()
    assert read == given
    kept = make.encoder(tokenizers["qwen2.5"], inline_tags="text").encode(
        make.sft([[make.user("a"), make.assistant(inline)]]), "sft"
    )
    assert make.encoder(tokenizers["qwen2.5"]).decode(kept[0].column("ids").to_pylist()[0]) == encoder.decode(
        read
    )
    assert kept[0].column("ids").to_pylist()[0] != read


@pytest.mark.parametrize(
    "content",
    [
        '<tool_call>\n{"name": "f", "arguments": {"x": 1}\n</tool_call>',
        '<tool_call>{"name": "f"}</tool_call> and then?',
        "<tool_call>f(x)</tool_call>",
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
    ],
)
def test_malformed_calls_stay_text(content: str, tokenizers: dict[str, Path]) -> None:
    encoder = make.encoder(tokenizers["qwen2.5"])
    tokens, counts = encoder.encode(make.sft([[make.user("a"), make.assistant(content)]]), "sft")
    row = tokens.to_pylist()[0]
    assert make.trained_text(encoder, row) == [content + "<|im_end|>"]
    assert counts == {"special_text": 1}


def test_words_that_a_template_acts_on_are_an_error_not_a_guess(tokenizers: dict[str, Path]) -> None:
    talk = [make.user("a"), make.assistant("The tag </think> ends a thought.")]
    as_text = make.encoder(tokenizers["qwen3"], inline_tags="text")
    assert as_text.encode(make.sft([talk]), "sft")[0].column("reason").to_pylist() == ["template"]


@pytest.mark.parametrize(
    ("loss_on", "flags", "trained"),
    [
        ("assistant", (None, None), ["b<|im_end|>", "d<|im_end|>"]),
        ("assistant", (False, None), ["d<|im_end|>"]),
        ("last_assistant", (None, None), ["d<|im_end|>"]),
        ("last_assistant", (None, False), []),
        ("assistant", (False, False), []),
    ],
)
def test_flags_of_turns_and_loss_on_choose_what_is_trained(
    loss_on: str, flags: tuple[bool | None, ...], trained: list[str], tokenizers: dict[str, Path]
) -> None:
    talk = [
        make.user("a"),
        make.assistant("b", train=flags[0]),
        make.user("c"),
        make.assistant("d", train=flags[1]),
    ]
    encoder = make.encoder(tokenizers["chatml"], loss_on=loss_on)
    row = encoder.encode(make.sft([talk]), "sft")[0].to_pylist()[0]
    assert make.trained_text(encoder, row) == trained
    assert row["reason"] == (None if trained else "no_loss")


def test_loss_on_all_trains_all_but_the_first_token_and_marked_turns(tokenizers: dict[str, Path]) -> None:
    talk = [make.user("a"), make.assistant("b", train=False), make.user("c"), make.assistant("d")]
    encoder = make.encoder(tokenizers["chatml"], loss_on="all")
    row = encoder.encode(make.sft([talk]), "sft")[0].to_pylist()[0]
    assert "".join(make.trained_text(encoder, row)) == (
        "user\na<|im_end|>\n<|im_start|>assistant\n\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\nd<|im_end|>\n"
    )


def test_arguments_of_the_record_win_over_the_recipes(tokenizers: dict[str, Path]) -> None:
    talk: list[Message] = [make.user("a"), make.assistant("b")]
    encoder = make.encoder(tokenizers["qwen3"], chat_kwargs='{"enable_thinking": false}')
    off = encoder.encode(make.sft([talk]), "sft")[0].to_pylist()[0]
    on = encoder.encode(make.sft([talk], kwargs={"enable_thinking": True}), "sft")[0].to_pylist()[0]
    assert off["ids"] == on["ids"]
    assert make.trained_text(encoder, off) == ["b<|im_end|>"]
    assert make.trained_text(encoder, on) == ["<think>\n\n</think>\n\nb<|im_end|>"]


@pytest.mark.parametrize(
    ("policy", "reasons", "control"),
    [("text", [None], 4), ("reject", ["special_text"], 0), ("allow", [None], 6)],
)
def test_control_text_in_a_turn_follows_the_recipe(
    policy: str, reasons: list[Any], control: int, tokenizers: dict[str, Path]
) -> None:
    talk = [make.user("<|im_end|> and <|im_start|>!"), make.assistant("b")]
    encoder = make.encoder(tokenizers["chatml"], special_text=policy)
    tokens, counts = encoder.encode(make.sft([talk]), "sft")
    assert counts == {"special_text": 1}
    assert tokens.column("reason").to_pylist() == reasons
    ids = {token.id for token in encoder.control.tokens}
    assert sum(id_ in ids for id_ in tokens.column("ids").to_pylist()[0]) == control


def test_a_template_that_refuses_all_of_a_large_batch_is_the_recipes_mistake(
    tokenizers: dict[str, Path],
) -> None:
    from datamix.core.errors import RecipeError

    talk = [make.system("s"), make.user("a"), make.assistant("b")]
    with pytest.raises(RecipeError, match="System role not supported"):
        make.encoder(tokenizers["gemma2"]).encode(make.sft([talk] * 40), "sft")


def test_white_space_swallowed_by_a_control_token_is_swallowed_here_too(tmp_path: Path) -> None:
    from encode_tokenizers import TEMPLATES, byte_level, save
    from tokenizers import AddedToken

    tokenizer = byte_level()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, rstrip=True) for token in ("<|user|>", "<|assistant|>", "<|end|>")]
    )
    tokenizer.add_special_tokens(["<|endoftext|>"])
    folder = save(tokenizer, tmp_path, (TEMPLATES / "phi3.jinja").read_text(), {"eos_token": "<|endoftext|>"})
    talk = [make.user("Hi there."), make.assistant("Hello."), make.user("Bye"), make.assistant("Bye.")]
    row = make.encoder(folder).encode(make.sft([talk]), "sft")[0].to_pylist()[0]
    assert (
        row["ids"]
        == make.reference(folder)(make.rendered(folder, talk), add_special_tokens=False)["input_ids"]
    )
    assert make.trained_text(make.encoder(folder), row) == ["Hello.<|end|>", "Bye.<|end|><|endoftext|>"]


def test_what_a_template_does_not_write_is_counted(tokenizers: dict[str, Path]) -> None:
    thought = [make.user("a"), make.assistant("b", reasoning="why")]
    counts = make.encoder(tokenizers["chatml"]).encode(
        make.sft([thought, [make.user("a"), make.assistant("b")]]), "sft"
    )[1]
    assert counts == {"unwritten": 1}
    history = [
        make.user("a"),
        make.assistant("b", reasoning="why"),
        make.user("c"),
        make.assistant("d", reasoning="so"),
    ]
    assert make.encoder(tokenizers["qwen3"]).encode(make.sft([history]), "sft")[1] == {}


def test_a_template_that_loops_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    from datamix.core.errors import RecipeError
    from datamix.tokenize import chat_template

    monkeypatch.setattr(chat_template, "LIMIT_SECONDS", 0.2)
    loop = "{% for a in range(99999) %}{% for b in messages %}{% endfor %}{% endfor %}"
    with pytest.raises(RecipeError, match=r"line 1: one conversation took more than .* it loops"):
        chat_template.ChatTemplate(loop, (), {}).render([make.user("a")] * 999, None, {}, False)


def test_a_slice_of_a_batch_is_encoded_like_its_rows(tokenizers: dict[str, Path]) -> None:
    talks = [
        [make.user(f"q{n} {'<|im_end|>' if n % 3 == 0 else ''}"), make.assistant(f"a{n}")] for n in range(9)
    ]
    encoder = make.encoder(tokenizers["chatml"])
    whole, part = make.sft(talks), make.sft(talks).slice(4, 4)
    assert (
        encoder.encode(part, "sft")[0].to_pylist() == encoder.encode(whole, "sft")[0].slice(4, 4).to_pylist()
    )
    assert encoder.encode(part, "sft")[1] == {"special_text": 1}


def test_numbers_of_any_size_are_rendered_as_they_stood(tokenizers: dict[str, Path]) -> None:
    calls = [make.call("f", {"n": 123456789012345678901234567890, "x": 1.0, "y": 1e-7})]
    talk = [make.user("a"), make.assistant(None, tool_calls=calls)]
    encoder = make.encoder(tokenizers["qwen2.5"])
    row = encoder.encode(make.sft([talk]), "sft")[0].to_pylist()[0]
    assert encoder.decode(row["ids"]) == make.rendered(tokenizers["qwen2.5"], talk)


TOOL_USE = (
    "{{ 'TOOLS ' + tools | tojson }}\n" + "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}CALL {{ c.function.name }} {{ c.function.arguments | tojson }}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LOOKUP = [{"type": "function", "function": {"name": "lookup", "description": "d", "parameters": {}}}]


@pytest.mark.parametrize("where", ["tokenizer_config.json", "additional_chat_templates"])
def test_of_named_templates_records_with_tools_take_the_one_for_tools(where: str, tmp_path: Path) -> None:
    from encode_tokenizers import TEMPLATES, byte_level, save

    from datamix.tokenize import copy_tokenizer, find_tokenizer

    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    chatml = (TEMPLATES / "chatml.jinja").read_text(encoding="utf-8")
    named: Any = {"eos_token": "<|im_end|>"}
    if where == "tokenizer_config.json":
        named["chat_template"] = [
            {"name": "default", "template": chatml},
            {"name": "tool_use", "template": TOOL_USE},
        ]
    folder = save(tokenizer, tmp_path / "tokenizer", None if named.get("chat_template") else chatml, named)
    if where == "additional_chat_templates":
        (folder / where).mkdir()
        (folder / where / "tool_use.jinja").write_text(TOOL_USE, encoding="utf-8")
    talk = [make.user("a"), make.assistant(None, tool_calls=[make.call("lookup", {"q": "b"})])]
    (tmp_path / "copy").mkdir()
    copy_tokenizer(find_tokenizer(str(folder), "."), tmp_path / "copy")
    for place in (folder, tmp_path / "copy"):
        encoder = make.encoder(place)
        with_tools = encoder.encode(make.sft([talk], LOOKUP), "sft")[0].to_pylist()[0]
        without = encoder.encode(make.sft([[make.user("a"), make.assistant("b")]]), "sft")[0].to_pylist()[0]
        assert make.trained_text(encoder, with_tools) == ['CALL lookup {"q": "b"}<|im_end|>']
        assert encoder.decode(with_tools["ids"]).startswith("TOOLS [")
        assert (
            encoder.decode(without["ids"])
            == "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"
        )


def test_tools_that_a_template_leaves_out_are_counted(tokenizers: dict[str, Path]) -> None:
    talk = [make.user("a"), make.assistant("b")]
    for name, expected in (("chatml", {"unwritten_tools": 1}), ("qwen2.5", {})):
        counts = make.encoder(tokenizers[name]).encode(make.sft([talk], LOOKUP), "sft")[1]
        assert counts == expected


def test_a_call_is_read_in_the_form_that_renders(tmp_path: Path) -> None:
    """Templates that join arguments as text, or content that must be there, read the record in that form."""
    from encode_tokenizers import byte_level, save

    joins = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ '' + m['content'] }}{% for c in m.tool_calls or [] %}"
        "CALL {{ c.function.name + ' ' + c.function.arguments }}{% endfor %}<|im_end|>\n{% endfor %}"
    )
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    encoder = make.encoder(save(tokenizer, tmp_path, joins, {"eos_token": "<|im_end|>"}))
    talk = [make.user("a"), make.assistant(None, tool_calls=[make.call("查询", {"城市": "北京\n", "n": 3})])]
    row = encoder.encode(make.sft([talk]), "sft")[0].to_pylist()[0]
    assert make.trained_text(encoder, row) == ['CALL 查询 {"城市": "北京\\n", "n": 3}<|im_end|>']


def test_a_call_that_is_written_by_its_id_is_not_lost(tmp_path: Path) -> None:
    from encode_tokenizers import byte_level, save

    by_id = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
        "<|call|>{{ c.id }}{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|call|>"])
    encoder = make.encoder(save(tokenizer, tmp_path, by_id, {"eos_token": "<|im_end|>"}))
    calls = [make.call("lookup", {"q": "b"}, "lookup:0"), make.call("now", {}, "now:1")]
    for given, written in (
        (calls, '<|call|>lookup:0{"q": "b"}<|call|>now:1{}<|im_end|>'),
        (calls[1:], "<|call|>now:1{}<|im_end|>"),
    ):
        talk = [make.user("a"), make.assistant(None, tool_calls=given)]
        row = encoder.encode(make.sft([talk]), "sft")[0].to_pylist()[0]
        assert make.trained_text(encoder, row) == [written]


def test_a_thought_without_its_opening_tag_is_read_where_the_template_reads_it(
    tokenizers: dict[str, Path],
) -> None:
    talk = [make.user("a"), make.assistant("because\n</think>\n\nb")]
    qwen3, r1 = (make.encoder(tokenizers[name]) for name in ("qwen3", "deepseek-r1"))
    row = qwen3.encode(make.sft([talk]), "sft")[0].to_pylist()[0]
    assert make.trained_text(qwen3, row) == ["<think>\nbecause\n</think>\n\nb<|im_end|>"]
    tokens, counts = r1.encode(make.sft([talk]), "sft")
    assert tokens.column("reason").to_pylist() == ["template"]
    assert any("cuts the thought" in name and "`chat_template`" in name for name in counts)


HEADED = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
CLOSING = HEADED + (
    "{% if m.role == 'assistant' %}<answer>{{ m.content }}</answer>{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENERS = (  # no token ends a turn: the opener of the next one does
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}"
    "{{ c.function.arguments | tojson }}</call>{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
REPEATED = HEADED + (  # the header of a result repeats the name of the call; calls have a stop of their own
    "{% if m.tool_calls %}to={{ m.tool_calls[0].function.name }}{{ m.tool_calls[0].function.arguments | tojson }}<|call|>"
    "{% set ns.name = m.tool_calls[0].function.name %}{% elif m.role == 'tool' %}from {{ ns.name }}: {{ m.content }}<|im_end|>"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# A generation prompt that nobody asked for follows the last turn.
ALWAYS = HEADED + "{{ m.content }}<|im_end|>\n{% endfor %}"
WRITTEN = "{{ '<|im_start|>assistant\n' }}"
ASKED = [
    make.user("a"),
    make.assistant(None, tool_calls=[make.call("find", {"q": "b"})]),
    make.tool("c", tool_call_id="abcdefghi"),
]


@pytest.mark.parametrize(
    ("template", "talk", "trained"),
    [
        (CLOSING, [make.user("a"), make.assistant("b")], ["<answer>b</answer><|im_end|>"]),
        (
            CLOSING,
            [make.user("a"), make.assistant("b"), make.user("c"), make.assistant("")],
            ["<answer>b</answer><|im_end|>", "<answer></answer><|im_end|>"],
        ),
        (ALWAYS + "<|im_start|>assistant\n", [make.user("a"), make.assistant("b")], ["\nb<|im_end|>"]),
        (ALWAYS + WRITTEN, [make.user("a"), make.assistant("b")], ["b<|im_end|>"]),
        (ALWAYS + WRITTEN, [make.user("a"), make.assistant("b"), make.user("c"), make.assistant("d")], ["b<|im_end|>", "d<|im_end|>"]),
        (OPENERS, ASKED[:2], ['<call>find{"q": "b"}</call><|tool|>']),
        (OPENERS, [*ASKED, make.assistant("d")], ['<call>find{"q": "b"}</call><|tool|>', "d<|user|>"]),
        (OPENERS, [*ASKED, make.assistant("d"), make.user("e")], ['<call>find{"q": "b"}</call><|tool|>', "d<|user|>"]),
        (OPENERS, [*ASKED[:1], make.assistant("b"), make.assistant("c")], ["b", "c<|user|>"]),
        ("{% set ns = namespace(name='') %}" + REPEATED, [*ASKED, make.assistant("d")], ['to=find{"q": "b"}<|call|>', "d<|im_end|>"]),
    ],
)  # fmt: skip
def test_a_turn_is_trained_to_its_stop(
    template: str, talk: list[Any], trained: list[str], tmp_path: Path
) -> None:
    from encode_tokenizers import byte_level, save

    tokenizer = byte_level()
    tokens = "<|endoftext|> <|im_start|> <|im_end|> <answer> </answer> <|user|> <|assistant|> <|tool|> <call> </call> <|call|>"
    tokenizer.add_special_tokens(tokens.split())
    encoder = make.encoder(save(tokenizer, tmp_path, template, {"eos_token": "<|endoftext|>"}))
    row = encoder.encode(make.sft([talk]), "sft")[0].to_pylist()[0]
    assert make.trained_text(encoder, row) == trained


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}\n{{ m.content }}", "line 2: it is not valid Jinja"),
        ("a\n\n{{ messages | nosuch }}", "line 3: it is not valid Jinja: No filter named 'nosuch'"),
    ],
)
def test_a_template_that_is_no_jinja_is_a_mistake_of_the_recipe(
    template: str, words: str, tmp_path: Path
) -> None:
    from encode_tokenizers import byte_level, save

    from datamix.core.errors import RecipeError

    folder = save(byte_level(), tmp_path, template, {"eos_token": None})
    with pytest.raises(RecipeError, match=words):
        make.encoder(folder).encode(make.sft([[make.user("a"), make.assistant("b")]]), "sft")
