"""Real tokenizers on real records: ids, masks and text as transformers has them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import encode_batches as make
import numpy as np
import pytest
from encode_batches import Message
from encode_tokenizers import SHARED

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real corpora are not at {SHARED}"),
]
QWEN = SHARED / "data/tokenizers/qwen2.5"
MISTRAL = SHARED / "data/tokenizers/mistral-v3-spm"
ROLES = {"human": "user", "gpt": "assistant", "system": "system", "observation": "tool"}


@cache
def talks(name: str, limit: int) -> list[list[Message]]:
    """Conversations of a ShareGPT file that end with an answer."""
    lines = (SHARED / "data" / name).read_bytes().split(b"\n")[:limit]
    found = [
        [
            {"role": ROLES[turn["from"]], "content": turn["value"]}
            for turn in json.loads(line)["conversations"]
        ]
        for line in lines
        if line
    ]
    return [
        one
        for one in found
        if one[-1]["role"] == "assistant" and all(turn["content"].strip() for turn in one)
    ]


def chinese() -> list[list[Message]]:
    return [
        *talks("sft_general/shibing624__MedicalGPT/sharegpt_zh_1K_format.jsonl", 1000),
        *talks("sft_domain/shibing624__MedicalGPT/medical_sft_1K_format.jsonl", 1000),
    ]


@cache
def tool_talks() -> list[tuple[list[Message], list[dict[str, object]]]]:
    rows = json.loads(
        (SHARED / "data/sft_general/hiyouga__LLaMA-Factory/glaive_toolcall_en_demo.json").read_bytes()
    )
    found = []
    for row in rows:
        talk: list[Message] = []
        for turn in row["conversations"]:
            if turn["from"] == "function_call":
                function = json.loads(turn["value"])
                talk.append(
                    {
                        "role": "assistant",
                        "content": "",
                        "tool_calls": [{"type": "function", "function": function}],
                    }
                )
            else:
                talk.append({"role": ROLES[turn["from"]], "content": turn["value"]})
        tools = [{"type": "function", "function": one} for one in json.loads(row["tools"] or "[]")]
        found.append((talk, tools))
    return found


@pytest.mark.parametrize("folder", [QWEN, MISTRAL], ids=["qwen", "mistral"])
def test_real_answers_are_trained_as_rendered_and_the_text_is_transformers_own(folder: Path) -> None:
    encoder = make.encoder(folder)
    batch = chinese()[::3]
    rows = encoder.encode(make.sft(batch), "sft")[0].to_pylist()
    control = {token.id for token in encoder.control.tokens}
    joint = make.reference(folder)([make.rendered(folder, one) for one in batch], add_special_tokens=False)[
        "input_ids"
    ]
    num_different = 0
    for talk, row, whole in zip(batch, rows, joint, strict=True):
        assert row["reason"] is None
        answers = [turn["content"] for turn in talk if turn["role"] == "assistant"]
        if folder == QWEN:
            wanted = [nfc(text) + "<|im_end|>" for text in answers]
        else:
            wanted = ["  " + text.strip() + "</s>" for text in answers]
        assert make.trained_text(encoder, row) == wanted
        assert [i for i in row["ids"] if i in control] == [i for i in whole if i in control]
        num_different += row["ids"] != whole
    assert num_different <= 2  # content that begins with white space next to the header's newline


def nfc(text: str) -> str:
    """Qwen2.5 normalises to NFC."""
    import unicodedata

    return unicodedata.normalize("NFC", text)


def test_masks_agree_with_generation_marks_of_a_template() -> None:
    """The marked template trains the header's newline and the one after the end of turn too: those two aside, equal."""
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast.from_pretrained(str(QWEN))
    template = (QWEN / "chat_template_training.jinja").read_text()
    encoder = make.encoder(QWEN)
    newline = reference.encode("\n", add_special_tokens=False)[0]
    batch = chinese()[::8]
    rows = encoder.encode(make.sft(batch), "sft")[0].to_pylist()
    num_equal = 0
    for talk, row in zip(batch, rows, strict=True):
        marked = reference.apply_chat_template(
            talk, chat_template=template, return_assistant_tokens_mask=True, return_dict=True
        )
        ids, mask = np.array(marked["input_ids"]), np.array(marked["assistant_masks"])
        if row["ids"] != ids.tolist():
            continue
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
        for start, stop in edges.reshape(-1, 2):
            assert ids[start] == newline
            assert ids[stop - 1] == newline
            mask[start] = mask[stop - 1] = 0
        assert row["mask"] == mask.tolist()
        num_equal += 1
    assert num_equal >= len(batch) - 1


def test_a_template_with_generation_marks_renders_the_same_text() -> None:
    from datamix.tokenize import EncodeSpec, find_tokenizer, load

    files = find_tokenizer(str(QWEN), ".", str(QWEN / "chat_template_training.jinja"))
    marked = load(EncodeSpec("sft", files, "assistant"))
    batch = make.sft(chinese()[:100])
    assert marked.encode(batch, "sft")[0].equals(make.encoder(QWEN).encode(batch, "sft")[0])


def test_real_tool_calls_are_trained_as_rendered() -> None:
    encoder = make.encoder(QWEN)
    for talk, tools in tool_talks():
        row = encoder.encode(make.sft([talk], tools or None), "sft")[0].to_pylist()[0]
        assert row["reason"] is None
        assert encoder.decode(row["ids"]) == make.rendered(QWEN, talk, tools or None)
        trained = make.trained_text(encoder, row)
        assert len(trained) == sum(turn["role"] == "assistant" for turn in talk)
        for turn, text in zip([turn for turn in talk if turn["role"] == "assistant"], trained, strict=True):
            assert text.endswith("<|im_end|>")
            if turn.get("tool_calls"):
                function = turn["tool_calls"][0]["function"]
                call = json.loads(text.removeprefix("<tool_call>\n").removesuffix("\n</tool_call><|im_end|>"))
                assert call == function
            else:
                assert text == turn["content"] + "<|im_end|>"


@pytest.mark.parametrize("folder", [QWEN, MISTRAL], ids=["qwen", "mistral"])
def test_naughty_strings_and_every_literal_stay_text_in_documents_and_turns(folder: Path) -> None:
    strings = json.loads(
        (SHARED / "data/messy/minimaxir__big-list-of-naughty-strings/blns.json").read_bytes()
    )
    encoder = make.encoder(folder)
    strings += [f"a {token.text}b{token.text}" for token in encoder.control.tokens]
    strings = [text for text in strings if text.strip()]
    control = {token.id for token in encoder.control.tokens} - {encoder.spec.tokenizer.eos_token_id}
    documents = make.encoder(folder, kind="pretrain").encode(make.texts(strings), "text")[0]
    for text, ids in zip(strings, documents.column("ids").to_pylist(), strict=True):
        body = ids[1:] if folder == MISTRAL else ids
        assert control.isdisjoint(body), text
    talk = make.sft([[make.user(text), make.assistant(text)] for text in strings])
    wanted = (
        encoder.encode(make.sft([[make.user("x"), make.assistant("x")]]), "sft")[0]
        .column("ids")
        .to_pylist()[0]
    )
    control = {token.id for token in encoder.control.tokens}
    wanted = [id_ for id_ in wanted if id_ in control]
    for text, row in zip(strings, encoder.encode(talk, "sft")[0].to_pylist(), strict=True):
        assert [id_ for id_ in row["ids"] if id_ in control] == wanted, text
        assert row["reason"] is None


@pytest.mark.parametrize("folder", [QWEN, MISTRAL], ids=["qwen", "mistral"])
def test_the_fast_engine_gives_the_same_ids_on_real_text(folder: Path) -> None:
    encoder = make.encoder(folder, kind="pretrain")
    if encoder.engine == "tokenizers":
        pytest.skip("fastokens is not installed, or did not prove equal")
    documents = [turn["content"] for talk in chinese()[:300] for turn in talk]
    fast, truth = encoder.plain.encode(documents), encoder.plain.truth.encode(documents)
    assert np.array_equal(fast.ids, truth.ids)
    assert np.array_equal(fast.offsets, truth.offsets)
