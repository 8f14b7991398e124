"""The beginning of a user's turn for every chat template: it is what the template writes, and what ends a turn is found."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from encode_tokenizers import FAMILIES, byte_level, save
from tokenizers import AddedToken

from datamix.core.errors import RecipeError
from datamix.tokenize.chat_template import ChatTemplate
from datamix.tokenize.tokenizer_files import find_tokenizer
from datamix.tokenize.user_turns import UserTurns

TEXT = "How do I sort this?\n\n```python\nx = [3, 1]\n```\n\n| a | b |\n|---|---|"
QUESTION, ANSWER = {"role": "user", "content": "q7q"}, {"role": "assistant", "content": "a7a"}
SYSTEM = {"role": "system", "content": "You ask about mathematics."}
NO_SYSTEM = {"gemma2"}
TRL = importlib.util.find_spec("trl")
TRL_TEMPLATES = sorted(Path(str(TRL.origin)).parent.glob("chat_templates/*.jinja")) if TRL else []


def check(folder: Path, has_system: bool) -> None:
    """Everything that must hold of one tokenizer's template."""
    files = find_tokenizer(str(folder), ".")
    turns = UserTurns(files)
    template = ChatTemplate(str(files.chat_template), files.named_tokens, {})

    def rendered(messages: list[dict[str, Any]]) -> str:
        if turns._traits.form.content_parts:
            messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        return template.render(messages, None, {}, False)

    for before in ([], [QUESTION, ANSWER], *([[SYSTEM], [SYSTEM, QUESTION, ANSWER]] if has_system else [])):
        opening = turns.opening(before)
        asked = [*before, {"role": "user", "content": TEXT}]
        whole = next(w for w in (rendered([*asked, ANSWER]), rendered(asked)) if w.startswith(opening))
        assert whole.startswith(opening + TEXT), before
        after = whole[len(opening) + len(TEXT) :]
        place, stop = min((after.find(stop), stop) for stop in turns.instruction_stops if stop in after)
        assert not after[:place].strip(), f"{stop} comes late in {after!r}"
        assert turns.instruction_stops[0] == stop
        assert turns.cut_leak(TEXT + after + "a7a") == (TEXT, True)
        assert turns.encode(opening) == turns._tokenizer.encode(opening, add_special_tokens=False).ids
    assert turns.cut_leak(TEXT) == (TEXT, False)
    end = rendered([QUESTION, ANSWER, QUESTION]).partition("a7a")[2]
    assert any(stop in end for stop in turns.answer_stops), end
    answering = turns.answering([QUESTION])
    assert answering.startswith(rendered([QUESTION])[:10])
    assert "q7q" in answering


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_prefix_is_what_the_template_writes_before_a_user_and_the_stop_what_follows(
    name: str, tokenizers: dict[str, Path]
) -> None:
    check(tokenizers[name], name not in NO_SYSTEM)


@pytest.mark.trainers
@pytest.mark.parametrize("path", TRL_TEMPLATES, ids=lambda path: path.stem)
def test_the_same_holds_for_each_published_template_of_trl(path: Path, tmp_path: Path) -> None:
    from test_masks_of_trl import CONTROL, eos
    from test_masks_of_trl import TEXT as LIKE_CONTROL

    name, template = path.stem.removesuffix("_training"), path.read_text(encoding="utf-8")
    tokenizer = byte_level()
    tokens = sorted({*CONTROL.findall(template), eos(name), "<bos>"} - LIKE_CONTROL)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    folder = save(tokenizer, tmp_path / name, template, {"bos_token": "<bos>", "eos_token": eos(name)})
    check(folder, name not in ("gemma",))


def test_an_answer_that_leaks_without_control_tokens_is_cut_at_its_header(
    tokenizers: dict[str, Path],
) -> None:
    turns = UserTurns(find_tokenizer(str(tokenizers["chatml"]), "."))
    assert turns.cut_leak("How?\nassistant\nLike so.") == ("How?", True)
    assert turns.cut_leak("How?\n assistant:\nLike so.") == ("How?", True)
    assert turns.cut_leak("Be my assistant\nfor an hour") == ("Be my assistant\nfor an hour", False)
    assert turns.instruction_stops[:2] == ("<|im_end|>", "<|im_start|>")


def test_the_system_text_of_the_template_stands_where_none_is_given(tokenizers: dict[str, Path]) -> None:
    turns = UserTurns(find_tokenizer(str(tokenizers["qwen2.5"]), "."))
    default = turns.opening()
    assert default.startswith("<|im_start|>system\n")
    assert turns.opening([SYSTEM]) == f"<|im_start|>system\n{SYSTEM['content']}<|im_end|>\n<|im_start|>user\n"


def test_a_template_that_refuses_a_system_turn_or_is_missing_is_an_error_of_the_recipe(
    tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="refuses a conversation of system, user"):
        UserTurns(find_tokenizer(str(tokenizers["gemma2"]), ".")).opening([SYSTEM])
    folder = save(byte_level(), tmp_path / "bare", None, {})
    with pytest.raises(RecipeError, match="has no chat template"):
        UserTurns(find_tokenizer(str(folder), "."))
    twice = "{% for m in messages %}{{ m['content'] }} {{ m['content'] }}{% endfor %}"
    folder = save(byte_level(), tmp_path / "twice", twice, {})
    with pytest.raises(RecipeError, match="exactly once"):
        UserTurns(find_tokenizer(str(folder), ".")).opening()
