"""Finding a tokenizer and what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from encode_tokenizers import byte_level, save, sentencepiece_bpe, unigram, word_piece
from tokenizers import Tokenizer

from datamix.core.errors import RecipeError
from datamix.tokenize import EncodeSpec, decoder, find_tokenizer, load


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<|endoftext|>", "<|im_end|>"])
    return save(tokenizer, tmp_path / "tok", "{{ messages }}", {"eos_token": "<|im_end|>"})


def test_a_folder_and_its_tokenizer_json_are_the_same(folder: Path) -> None:
    by_folder, by_file = (
        find_tokenizer("tok", str(folder.parent)),
        find_tokenizer("tok/tokenizer.json", str(folder.parent)),
    )
    assert by_folder.folder == by_file.folder == str(folder)
    assert by_folder.sha256 == by_file.sha256
    assert by_folder.vocab_size == 527
    assert (by_folder.bos_token_id, by_folder.eos_token_id, by_folder.pad_token_id) == (None, 526, None)
    assert by_folder.chat_template == "{{ messages }}"


def test_tokens_are_named_by_strings_or_objects_and_the_config_wins(folder: Path) -> None:
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": "<|endoftext|>", "pad_token": {"content": "<|endoftext|>"}})
    )
    files = find_tokenizer(str(folder), ".")
    assert (files.eos_token_id, files.pad_token_id) == (526, 525)


def test_a_template_is_taken_from_the_recipe_then_the_file_then_the_config(folder: Path) -> None:
    (folder.parent / "own.jinja").write_text("own")
    assert find_tokenizer("tok", str(folder.parent), "own.jinja").chat_template == "own"
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [
        {"name": "default", "template": "listed"},
        {"name": "rag", "template": "other"},
    ]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert find_tokenizer(str(folder), ".").chat_template == "{{ messages }}"
    (folder / "chat_template.jinja").unlink()
    assert find_tokenizer(str(folder), ".").chat_template == "listed"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nothing", "nothing at"),
        ("empty", "no tokenizer.json in it"),
        ("broken", "not JSON"),
        ("other.json", "not called tokenizer.json"),
    ],
)
def test_what_is_missing_is_said(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(RecipeError, match=message):
        find_tokenizer(name, str(tmp_path))


def test_a_hub_id_that_cannot_be_had_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", _offline)
    with pytest.raises(RecipeError, match=r"neither a folder .* nor could it be downloaded from the Hub"):
        find_tokenizer("nobody/nothing", str(tmp_path))


def _offline(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
    raise ConnectionError(f"no network for {repository} {revision} {allow_patterns}")


def test_a_hub_snapshot_is_read_like_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def found(repository: str, revision: str | None, allow_patterns: list[str]) -> str:
        assert "tokenizer.json" in allow_patterns
        asked.append((repository, revision))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", found)
    assert find_tokenizer("owner/name@v1", str(folder)).vocab_size == 527
    assert asked == [("owner/name", "v1")]


def test_a_template_that_is_not_there_is_said(folder: Path) -> None:
    with pytest.raises(RecipeError, match="chat_template: there is no file"):
        find_tokenizer(str(folder), ".", "nowhere.jinja")


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "sentencepiece": lambda: sentencepiece_bpe(["<unk>", "<s>", "</s>"]),
    "unigram": lambda: unigram(["<s>", "<pad>", "</s>", "<unk>"]),
    "word piece": lambda: word_piece(["[UNK]", "[CLS]", "[SEP]"]),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_decoder_without_merges_decodes_the_same(tmp_path: Path, name: str) -> None:
    whole = TOKENIZERS[name]()
    whole.add_special_tokens(["<|end|>"])
    whole.save(str(tmp_path / "tokenizer.json"))
    lean, size = decoder(tmp_path / "tokenizer.json"), whole.get_vocab_size()
    for at in range(0, size, 7):
        ids = list(range(at, min(at + 7, size)))
        assert lean.decode(ids, skip_special_tokens=False) == whole.decode(ids, skip_special_tokens=False)


def test_a_tokenizer_that_cannot_be_loaded_is_named(folder: Path) -> None:
    spec = json.loads((folder / "tokenizer.json").read_bytes())
    spec["model"]["merges"].insert(0, ["nope", "nothere"])
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(RecipeError, match="tok cannot be loaded: Token `nope` out of vocabulary"):
        load(EncodeSpec("sft", find_tokenizer(str(folder), "."), "assistant"))
