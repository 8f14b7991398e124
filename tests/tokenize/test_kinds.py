"""Documents, pairs, prompts, and records of other kinds."""

from __future__ import annotations

from pathlib import Path

import encode_batches as make
import pytest
from encode_tokenizers import save, sentencepiece_bpe, unigram, word_piece
from tokenizers import processors

from datamix.core.errors import RecipeError
from datamix.core.records import TOKENS
from datamix.tokenize import EncodeSpec, find_tokenizer, load, split_points


def test_documents_get_the_bos_of_the_tokenizer_and_eos(tmp_path: Path) -> None:
    tokenizer = sentencepiece_bpe(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    folder = save(tokenizer, tmp_path, None, {"bos_token": "<s>", "eos_token": "</s>"})
    encoder = make.encoder(folder, kind="pretrain")
    tokens, counts = encoder.encode(make.texts(["The fever went down.", "", "  ", "a </s> b"]), "text")
    assert tokens.schema == TOKENS["pretrain"]
    rows = tokens.to_pylist()
    plain = tokenizer.encode("The fever went down.", add_special_tokens=False).ids
    assert rows[0]["ids"] == [1, *plain, 2]
    assert (rows[0]["length"], rows[0]["loss"]) == (len(plain) + 2, len(plain) + 2)
    assert [row["reason"] for row in rows] == [None, "empty", "empty", None]
    assert rows[3]["ids"].count(2) == 1
    assert counts == {"special_text": 1}


@pytest.mark.parametrize(
    ("policy", "num_eos", "reason"), [("text", 1, None), ("allow", 2, None), ("reject", 0, "special_text")]
)
def test_control_text_in_documents_follows_the_recipe(
    policy: str, num_eos: int, reason: str | None, tokenizers: dict[str, Path]
) -> None:
    encoder = make.encoder(tokenizers["chatml"], kind="pretrain", special_text=policy)
    tokens, counts = encoder.encode(make.texts(["one<|endoftext|>two", "three"]), "text")
    rows = tokens.to_pylist()
    assert rows[0]["ids"].count(encoder.spec.tokenizer.eos_token_id) == num_eos
    assert [row["reason"] for row in rows] == [reason, None]
    assert counts == {"special_text": 1}


@pytest.mark.parametrize("kind", ["unigram", "word_piece"])
def test_control_tokens_in_the_vocabulary_itself_are_out_of_reach(kind: str, tmp_path: Path) -> None:
    if kind == "unigram":
        names, tokenizer = ["<s>", "</s>"], unigram(["<s>", "<pad>", "</s>", "<unk>"])
    else:
        names, tokenizer = ["[CLS]", "[SEP]"], word_piece(["[UNK]", "[CLS]", "[SEP]", "[PAD]"])
    folder = save(tokenizer, tmp_path, None, {"eos_token": names[1]})
    encoder = make.encoder(folder, kind="pretrain")
    control = {tokenizer.token_to_id(name) for name in names}
    text = f"aspirin {names[0]} doctor {names[1]} fever {names[1]}{names[0]}"
    ids = encoder.encode(make.texts([text, "doctor"]), "text")[0].column("ids").to_pylist()
    inner = ids[0][len(ids[1]) - len(tokenizer.encode("doctor", add_special_tokens=False).ids) - 1 : -1]
    assert control.isdisjoint(inner)
    plain = tokenizer.encode("aspirin", add_special_tokens=False).ids
    assert inner[: len(plain)] == plain


def test_pairs_share_their_prompt_and_end_their_turns(tokenizers: dict[str, Path]) -> None:
    encoder = make.encoder(tokenizers["qwen2.5"], kind="preference")
    prompt = [make.system("s"), make.user("Which?"), make.assistant("Tea?"), make.user("No.")]
    rows = [
        (prompt, [make.assistant("Coffee then.")], [make.assistant("\n Tea!")]),
        (prompt, [make.assistant("Only.")], None),
    ]
    tokens, _ = encoder.encode(make.pairs(rows), "preference")
    assert tokens.schema == TOKENS["preference"]
    first, second = tokens.to_pylist()
    rendering = make.rendered(tokenizers["qwen2.5"], prompt, add_generation_prompt=True)
    assert encoder.decode(first["prompt"]) == rendering == encoder.decode(second["prompt"])
    assert encoder.decode(first["chosen"]) == "Coffee then.<|im_end|>"
    assert encoder.decode(first["rejected"]) == "\n Tea!<|im_end|>"
    assert second["rejected"] is None
    assert first["length"] == len(first["prompt"]) + first["loss"]
    assert first["loss"] == len(first["chosen"]) + len(first["rejected"])
    assert second["loss"] == len(second["chosen"])


def test_a_pair_whose_rendering_does_not_extend_its_prompt_is_an_error(tokenizers: dict[str, Path]) -> None:
    encoder = make.encoder(tokenizers["deepseek-r1"], kind="preference")
    tokens, _ = encoder.encode(
        make.pairs([([make.user("q")], [make.assistant("a")], [make.assistant("b")])]), "preference"
    )
    assert tokens.column("reason").to_pylist() == ["template"]


def test_prompts_end_with_the_generation_prompt(tokenizers: dict[str, Path]) -> None:
    encoder = make.encoder(tokenizers["llama3.1"], kind="prompt")
    tokens, _ = encoder.encode(make.prompts([[make.user("q <|eot_id|>")]]), "prompt")
    assert tokens.schema == TOKENS["prompt"]
    row = tokens.to_pylist()[0]
    assert encoder.decode(row["prompt"]).endswith(
        "q <|eot_id|><|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert row["length"] == row["loss"] == len(row["prompt"])


def test_records_of_other_kinds_are_taken_where_that_makes_sense(tokenizers: dict[str, Path]) -> None:
    talk = [make.user("q"), make.assistant("a"), make.user("r"), make.assistant("b")]
    pair = make.pairs([(talk[:3], [talk[3]], [make.assistant("c")])])
    folder = tokenizers["qwen2.5"]
    sft = make.encoder(folder)
    assert sft.encode(pair, "preference")[0].to_pylist() == sft.encode(make.sft([talk]), "sft")[0].to_pylist()
    prompt = make.encoder(folder, kind="prompt")
    wanted = prompt.encode(make.prompts([talk[:3]]), "prompt")[0].to_pylist()
    assert prompt.encode(make.sft([talk]), "sft")[0].to_pylist() == wanted
    assert prompt.encode(pair, "preference")[0].to_pylist() == wanted
    document = make.encoder(folder, kind="pretrain").encode(make.sft([talk]), "sft")[0].to_pylist()[0]
    assert sft.decode(document["ids"]) == make.rendered(folder, talk)
    assert document["loss"] == document["length"]


def test_a_kind_that_cannot_be_made_is_refused_with_its_cure(
    tokenizers: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="holds no turns"):
        make.encoder(tokenizers["chatml"]).encode(make.texts(["a"]), "text")
    with pytest.raises(RecipeError, match="holds no pairs"):
        make.encoder(tokenizers["chatml"], kind="preference").encode(make.sft([[make.user("a")]]), "sft")
    with pytest.raises(RecipeError, match="holds no answers"):
        make.encoder(tokenizers["chatml"]).encode(make.prompts([[make.user("a")]]), "prompt")
    bare = save(sentencepiece_bpe(["<unk>", "</s>"]), tmp_path, None, {"eos_token": "</s>"})
    with pytest.raises(RecipeError, match="`chat_template`"):
        load(EncodeSpec("sft", find_tokenizer(str(bare), "."), "assistant"))


def test_the_identity_of_a_spec_knows_no_paths(tokenizers: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    moved = shutil.copytree(tokenizers["chatml"], tmp_path / "elsewhere")
    here, there = (
        EncodeSpec("sft", find_tokenizer(str(path), "."), "assistant")
        for path in (tokenizers["chatml"], moved)
    )
    assert here.identity() == there.identity()
    assert str(tmp_path) not in str(there.identity())
    assert here.identity() != EncodeSpec("sft", here.tokenizer, "all").identity()


def test_tokens_that_end_lines_and_sentences_are_known(tokenizers: dict[str, Path]) -> None:
    encoder = make.encoder(tokenizers["chatml"], kind="pretrain")
    ends = split_points(encoder.spec.tokenizer)
    assert len(ends) == encoder.spec.tokenizer.vocab_size
    assert [
        bool(ends[encoder.plain.encode([text]).ids[-1]]) for text in ("a.", "a\n", "好。", "a", "a ")
    ] == [True, True, True, False, False]


@pytest.mark.parametrize("name", ["chatml", "mistral-v3"])
@pytest.mark.parametrize("policy", ["text", "allow"])
def test_each_token_of_a_document_has_its_place_in_the_text(
    name: str, policy: str, tokenizers: dict[str, Path]
) -> None:
    encoder = make.encoder(tokenizers[name], kind="pretrain", special_text=policy)
    special = str(encoder.decode([encoder.spec.tokenizer.eos_token_id or 0]))
    documents = [
        "The fever went down.",
        f"发热 38.5℃ 😀{special} and {special}{special}after",
        "\n\n  x\n",
        special,
    ]
    rows = encoder.encode(make.texts(documents), "text")[0].to_pylist()
    for text, row in zip(documents, rows, strict=True):
        starts = encoder.document_starts(text)
        assert starts is not None
        assert len(starts) == len(row["ids"]) + 1
        assert (starts[0], starts[-1]) == (0, len(text))
        assert (starts[1:] >= starts[:-1]).all()
        for cut in range(len(row["ids"]) + 1):  # two pieces end to end are the document
            assert text[: starts[cut]] + text[starts[cut] :] == text
    whole = encoder.encode(make.texts(documents[:1]), "text")[0].to_pylist()[0]
    starts = encoder.document_starts(documents[0])
    assert starts is not None
    words = [encoder.decode([token]).strip() for token in whole["ids"]]
    places = zip(words, starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    assert all(documents[0][a:b].strip() in word for word, a, b in places if b > a)
