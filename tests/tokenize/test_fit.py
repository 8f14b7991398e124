"""Over-long records: whole turns, then the prompt, never an answer."""

from __future__ import annotations

import json
from pathlib import Path

import encode_batches as make
import pytest
from encode_batches import Message
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from datamix.tokenize.truncate import fit

TALK: list[Message] = [make.system("Be kind.")]
for number in range(6):
    TALK += [make.user(f"question {number} " * 8), make.assistant(f"answer {number} " * 5)]


def texts_of(encoder: object, row: Message) -> list[str]:
    return make.trained_text(encoder, row)  # type: ignore[arg-type]


def test_the_oldest_exchanges_go_first_and_the_system_turn_stays(tokenizers: dict[str, Path]) -> None:
    encoder = make.encoder(tokenizers["chatml"])
    full = encoder.encode(make.sft([TALK]), "sft")[0].to_pylist()[0]
    for num_kept in (5, 3, 1):
        kept = [TALK[0], *TALK[-2 * num_kept :]]
        wanted = encoder.encode(make.sft([kept]), "sft")[0].to_pylist()[0]
        for room in (0, 5):
            row = fit(
                encoder, make.sft([TALK]), "sft", wanted["length"] + room, "drop_turns"
            ).tokens.to_pylist()[0]
            assert row == {**wanted, "truncated": True}
    assert full["truncated"] is False


def test_the_last_question_is_cut_before_the_record_is_given_up(tokenizers: dict[str, Path]) -> None:
    encoder = make.encoder(tokenizers["chatml"])
    alone = encoder.encode(make.sft([[TALK[0], *TALK[-2:]]]), "sft")[0].to_pylist()[0]
    row = fit(encoder, make.sft([TALK]), "sft", alone["length"] - 10, "drop_turns").tokens.to_pylist()[0]
    assert row["reason"] is None
    assert row["truncated"]
    assert row["length"] <= alone["length"] - 10
    assert texts_of(encoder, row) == [TALK[-1]["content"] + "<|im_end|>"]
    text = encoder.decode(row["ids"])
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\n")
    question = text.split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
    assert TALK[-2]["content"].endswith(question)


@pytest.mark.parametrize("overlong", ["drop_turns", "truncate", "drop"])
def test_an_answer_is_never_cut(overlong: str, tokenizers: dict[str, Path]) -> None:
    encoder = make.encoder(tokenizers["chatml"])
    row = fit(encoder, make.sft([TALK]), "sft", 12, overlong).tokens.to_pylist()[0]
    assert (row["reason"], row["ids"], row["loss"], row["truncated"]) == ("overlong", [], 0, False)


def test_truncate_cuts_questions_before_it_drops_answers(tokenizers: dict[str, Path]) -> None:
    encoder = make.encoder(tokenizers["chatml"])
    full = encoder.encode(make.sft([TALK]), "sft")[0].to_pylist()[0]
    row = fit(encoder, make.sft([TALK]), "sft", full["length"] - 20, "truncate").tokens.to_pylist()[0]
    assert row["length"] <= full["length"] - 20
    assert row["loss"] == full["loss"]
    assert texts_of(encoder, row) == texts_of(encoder, full)


@pytest.mark.parametrize("num_turns", [1, 5, 25])
def test_a_cut_that_frees_less_than_it_counts_is_made_deeper(
    num_turns: int, tokenizers: dict[str, Path]
) -> None:
    # An emoji is several tokens and one character: a cut counts all but one of its tokens and removes none of them.
    talk = [make.user("\U0001f600")] * num_turns + [make.user("question " * 200), make.assistant("so.")]
    encoder = make.encoder(tokenizers["chatml"])
    full = encoder.encode(make.sft([talk]), "sft")[0].to_pylist()[0]
    room = full["length"] - 5 * num_turns
    row = fit(encoder, make.sft([talk]), "sft", room, "drop_turns").tokens.to_pylist()[0]
    assert row["reason"] is None
    assert row["length"] <= room
    assert texts_of(encoder, row) == texts_of(encoder, full)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    sizes=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=5),
    max_length=st.integers(8, 120),
    overlong=st.sampled_from(["drop_turns", "truncate"]),
    name=st.sampled_from(["chatml", "qwen3", "mistral-v3", "chatglm4"]),
)
def test_what_is_left_fits_and_ends_its_answers(
    sizes: list[tuple[int, int]], max_length: int, overlong: str, name: str, tokenizers: dict[str, Path]
) -> None:
    talk = [
        turn
        for asked, said in sizes
        for turn in (make.user("why 为什么 " * asked), make.assistant("so " * said + "."))
    ]
    encoder = make.encoder(tokenizers[name])
    full = encoder.encode(make.sft([talk]), "sft")[0].to_pylist()[0]
    assume(full["length"] > max_length)
    row = fit(encoder, make.sft([talk]), "sft", max_length, overlong).tokens.to_pylist()[0]
    if row["reason"] is not None:
        assert row["reason"] == "overlong"
        assert not row["ids"]
        event("refused")
        return
    assert row["length"] == len(row["ids"]) <= max_length
    assert row["loss"] == sum(row["mask"]) > 0
    whole = texts_of(encoder, full)
    assert texts_of(encoder, row) == whole[len(whole) - len(texts_of(encoder, row)) :]


def rendered(encoder: object, row: Message, side: str = "chosen") -> str:
    return encoder.decode(row["prompt"] + row[side])  # type: ignore[attr-defined, no-any-return]


def test_prompts_of_pairs_are_cut_in_front_the_same_for_both_sides(tokenizers: dict[str, Path]) -> None:
    encoder = make.encoder(tokenizers["chatml"], kind="preference")
    batch = make.pairs(
        [
            ([make.user("long question " * 9)], [make.assistant("yes")], [make.assistant("no, not at all")]),
            ([make.user("q")], [make.assistant("much too long " * 40)], [make.assistant("no")]),
            ([make.user("long question " * 9)], [make.assistant("yes")], None),
        ]
    )
    full = encoder.encode(batch, "preference")[0].to_pylist()
    fitted = fit(encoder, batch, "preference", 30, "truncate_prompt")
    cut, messages = fitted.tokens.to_pylist(), fitted.messages.to_pylist()
    assert (cut[0]["chosen"], cut[0]["rejected"]) == (full[0]["chosen"], full[0]["rejected"])
    assert len(cut[0]["prompt"]) + max(len(cut[0]["chosen"]), len(cut[0]["rejected"])) <= 30
    (question,) = messages[0]
    assert ("long question " * 9).endswith(question["content"])
    assert rendered(encoder, cut[0]).startswith(f"<|im_start|>user\n{question['content']}<|im_end|>")
    assert cut[0]["truncated"]
    assert (cut[1]["reason"], cut[1]["prompt"], messages[1]) == ("overlong", [], None)
    assert cut[2]["rejected"] is None
    assert len(cut[2]["prompt"]) + len(cut[2]["chosen"]) <= 30
    dropped = fit(encoder, batch, "preference", 30, "drop").tokens.column("reason").to_pylist()
    assert dropped == ["overlong"] * 3
    fits = max(full[0]["length"] - len(full[0]["chosen"]), full[0]["length"] - len(full[0]["rejected"]))
    for overlong in ("truncate_prompt", "drop"):
        whole = fit(encoder, batch, "preference", fits, overlong)
        assert whole.tokens.to_pylist()[0] == full[0]
        assert whole.messages.to_pylist()[0][0]["content"] == "long question " * 9


def test_a_pair_loses_its_oldest_exchanges_and_keeps_the_system_turn(tokenizers: dict[str, Path]) -> None:
    encoder = make.encoder(tokenizers["chatml"], kind="preference")
    batch = make.pairs([(TALK[:-1], [make.assistant("yes")], [make.assistant("no")])])
    short = make.pairs([([TALK[0], *TALK[-4:-1]], [make.assistant("yes")], [make.assistant("no")])])
    wanted = encoder.encode(short, "preference")[0].to_pylist()[0]
    fitted = fit(
        encoder, batch, "preference", len(wanted["prompt"] + wanted["chosen"]) + 3, "truncate_prompt"
    )
    assert fitted.tokens.to_pylist() == [wanted | {"truncated": True}]
    assert [turn["content"] for turn in fitted.messages.to_pylist()[0]] == [
        turn["content"] for turn in (TALK[0], *TALK[-4:-1])
    ]


def test_the_messages_that_are_left_render_to_the_tokens_that_are_left(tokenizers: dict[str, Path]) -> None:
    encoder = make.encoder(tokenizers["qwen3"])
    call = make.call("look_up", {"q": "x " * 30})
    talk = [
        *TALK,
        make.user("and now " * 30),
        make.assistant(None, tool_calls=[call]),
        make.tool("result " * 20, tool_call_id=call["id"]),
        make.assistant("done.", reasoning="hm"),
    ]
    for max_length in (60, 90, 130, 200):
        fitted = fit(encoder, make.sft([talk]), "sft", max_length, "drop_turns")
        (row,), (messages,) = fitted.tokens.to_pylist(), fitted.messages.to_pylist()
        if row["reason"] is None:
            again = [{**m, "tool_calls": m["tool_calls"] and json.loads(m["tool_calls"])} for m in messages]
            assert encoder.encode(make.sft([again]), "sft")[0].to_pylist()[0]["ids"] == row["ids"]


def exchanges_of(messages: list[Message]) -> list[tuple[str, str]]:
    """Questions with their answers."""
    asked = [m["content"] for m in messages if m["role"] == "user"]
    return list(zip(asked, (m["content"] for m in messages if m["role"] == "assistant"), strict=True))


@pytest.mark.parametrize("name", ["chatml", "qwen3", "mistral-v3", "chatglm4"])
@pytest.mark.parametrize("overlong", ["truncate", "drop_turns"])
def test_no_answer_is_trained_to_a_question_that_was_cut_away(
    overlong: str, name: str, tokenizers: dict[str, Path]
) -> None:
    talk = []
    for number in range(8):
        talk += [make.user(f"q{number} " + "w " * 40), make.assistant(f"a{number} " + "x " * 10)]
    encoder = make.encoder(tokenizers[name])
    full = encoder.encode(make.sft([talk]), "sft")[0].to_pylist()[0]
    seen = set()
    for max_length in range(30, full["length"], 7):
        fitted = fit(encoder, make.sft([talk]), "sft", max_length, overlong)
        if fitted.tokens.to_pylist()[0]["reason"]:
            continue
        exchanges = exchanges_of(fitted.messages.to_pylist()[0])
        assert [answer[:2] for _, answer in exchanges] == [f"a{n}" for n in range(8 - len(exchanges), 8)]
        assert all(question.count("w") >= 2 for question, _ in exchanges)
        assert all(question.startswith("q") for question, _ in exchanges[1:])  # only the oldest is cut
        seen.add((len(exchanges), exchanges[0][0].startswith("q")))
    assert (1, False) in seen  # the last question is cut before the record is given up
    assert ((8, False) in seen) == (overlong == "truncate")


def test_a_pair_whose_question_would_be_cut_away_is_refused(tokenizers: dict[str, Path]) -> None:
    for name in ("chatml", "qwen3", "mistral-v3", "chatglm4"):
        encoder = make.encoder(tokenizers[name], kind="preference")
        talk = [make.user("first " * 9), make.assistant("so " * 5), make.user("why 为什么 " * 9)]
        batch = make.pairs([(talk, [make.assistant("yes")], [make.assistant("no, not at all")])])
        full = encoder.encode(batch, "preference")[0].to_pylist()[0]
        for max_length in range(4, full["length"]):
            fitted = fit(encoder, batch, "preference", max_length, "truncate_prompt")
            messages = fitted.messages.to_pylist()[0]
            assert messages is None or messages[-1]["content"].endswith("为什么 ")


def test_a_tool_result_that_would_be_cut_away_takes_its_exchange_along(tokenizers: dict[str, Path]) -> None:
    encoder = make.encoder(tokenizers["chatml"])
    old = [
        make.user("look it up"),
        make.assistant("wait"),
        make.tool("result " * 30),
        make.assistant("the old answer"),
    ]
    talk = [*old, make.user("and now"), make.assistant("the new answer")]
    full = encoder.encode(make.sft([talk]), "sft")[0].to_pylist()[0]
    alone = encoder.encode(make.sft([talk[4:]]), "sft")[0].to_pylist()[0]
    for max_length in range(alone["length"], full["length"]):
        row = fit(encoder, make.sft([talk]), "sft", max_length, "truncate").tokens.to_pylist()[0]
        text = encoder.decode(row["ids"])
        assert ("the old answer" in text) == (text.count("result") >= 1)
        assert "the new answer" in text


@pytest.mark.parametrize("end", ["\n" * 40, " " * 60, "？？？" * 12])
def test_the_last_word_of_a_question_stays(end: str, tokenizers: dict[str, Path]) -> None:
    encoder = make.encoder(tokenizers["chatml"])
    talk = [make.user("words " * 20 + "why" + end), make.assistant("so.")]
    full = encoder.encode(make.sft([talk]), "sft")[0].to_pylist()[0]
    for max_length in range(12, full["length"]):
        row = fit(encoder, make.sft([talk]), "sft", max_length, "truncate").tokens.to_pylist()[0]
        assert row["reason"] == "overlong" or "why" in encoder.decode(row["ids"])
