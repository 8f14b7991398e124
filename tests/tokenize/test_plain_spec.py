"""A tokenizer.json parsed once: what it leaves in a cache is what parsing gives, and merges keep their meaning."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from encode_tokenizers import byte_level, save, sentencepiece_bpe, unigram, word_piece
from small import recipe
from tokenizers import Tokenizer, models

from datamix.core.errors import RecipeError
from datamix.jobs.build import build
from datamix.pipeline.engine import LocalEngine
from datamix.pipeline.planning import make_plan
from datamix.pipeline.progress import Screen
from datamix.pipeline.steps import Options, preflight
from datamix.recipe import Recipe
from datamix.tokenize import find_tokenizer, tokenizer, tokenizer_files
from datamix.tokenize.plain_spec import parsed_spec, read_parsed
from datamix.tokenize.special_tokens import control_tokens
from datamix.tokenize.tokenizer import PlainEncoder

BUILDERS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "sentencepiece": lambda: sentencepiece_bpe(["<unk>", "<s>", "</s>"]),
    "unigram": lambda: unigram(["<s>", "<pad>", "</s>", "<unk>"]),
    "word piece": lambda: word_piece(["[UNK]", "[CLS]", "[SEP]"]),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_parsed_tokenizer_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    parsed = parsed_spec(json.loads(BUILDERS[name]().to_str()), contents=("</s>", "[SEP]", "no token"))
    parsed.write(tmp_path)
    assert read_parsed(tmp_path) == parsed


def test_merges_as_one_text_give_the_ids_of_merges_as_pairs() -> None:
    whole = byte_level()
    spec = json.loads(whole.to_str())
    assert isinstance(spec["model"]["merges"][0], list)
    parsed = parsed_spec(spec)
    assert isinstance(json.loads(parsed.plain)["model"]["merges"][0], str)
    texts = ["Hello there, def add(a, b):\n    return 1", "你好，世界", ""]
    plain = PlainEncoder(parsed, control_tokens(spec["added_tokens"]))
    assert plain.encode(texts).ids.tolist() == [
        i for t in texts for i in whole.encode(t, add_special_tokens=False).ids
    ]


@pytest.mark.parametrize(
    "pairs",
    [[("a", "b"), ("ab", " c")], [("a", "b"), ("#version", "ab")], [("", "a b")]],
    ids=["blank", "comment", "empty"],
)
def test_merges_that_would_be_read_as_others_stay_pairs(pairs: list[tuple[str, str]]) -> None:
    tokens = {
        token: number
        for number, token in enumerate(dict.fromkeys(t for p in pairs for t in (*p, "".join(p))))
    }
    spec = json.loads(Tokenizer(models.BPE(tokens, pairs)).to_str())
    assert json.loads(parsed_spec(spec).plain)["model"]["merges"] == [list(pair) for pair in pairs]


def test_a_tokenizer_that_the_cache_knows_is_not_parsed_again_and_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Recipe.read(recipe(tmp_path))
    options = Options(tmp_path / "out", tmp_path / "cache", 1)
    build(read, options)
    first = find_tokenizer(read.tokenizer, read.base)

    def refuse(*_: Any) -> Any:
        raise AssertionError("parsed again")

    with monkeypatch.context() as patch:
        patch.setattr(tokenizer_files, "_parse", refuse)
        second = preflight(read, options.cache)
        assert second.parsed is not None
        assert second.__dict__ | {"parsed": None} == first.__dict__
        assert tokenizer_files.parsed_tokenizer(second) == read_parsed(Path(second.parsed))
    facts = Path(second.parsed) / "facts.json"
    facts.write_bytes(facts.read_bytes().replace(b'"vocab_size":', b'"vocab_size":1'))
    assert preflight(read, options.cache) == first  # what was damaged is parsed again
    facts.unlink()
    assert tokenizer_files.parsed_tokenizer(second).vocab_size == first.vocab_size  # pruned while it was used


def test_a_tokenizer_with_other_bytes_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    read = Recipe.read(recipe(tmp_path))
    options = Options(tmp_path / "out", tmp_path / "cache", 1)
    build(read, options)
    path = tmp_path / "tokenizer" / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b"\n")
    assert preflight(read, options.cache).parsed is None


def test_a_model_without_a_vocabulary_is_an_error_in_words(tmp_path: Path) -> None:
    folder = save(byte_level(), tmp_path / "t", None, {})
    spec = json.loads((folder / "tokenizer.json").read_text())
    del spec["model"]["vocab"]
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(RecipeError, match=r"cannot be loaded: .*vocab.* Save the tokenizer again"):
        find_tokenizer(str(folder), ".")


def test_little_text_does_not_load_the_second_engine_and_much_does(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = json.loads(byte_level().to_str())
    loads: list[int] = []
    engines = tokenizer._fast_engines
    monkeypatch.setattr(tokenizer, "_fast_engines", lambda texts: loads.append(1) or engines(texts))
    plain = PlainEncoder(parsed_spec(spec), control_tokens(spec["added_tokens"]))
    few = plain.encode(["Hello there"])
    assert (plain.engine, loads) == ("small", [])
    monkeypatch.setattr(tokenizer, "_SMALL_CHARS", 20)
    assert plain.encode(["Hello there"]).ids.tolist() == few.ids.tolist()
    assert (plain.engine != "small", loads) == (True, [1])
    assert plain.encode(["Hello there"]).ids.tolist() == few.ids.tolist()
    assert loads == [1]


def test_a_plan_of_two_small_sources_starts_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("workers were started")

    monkeypatch.setattr(LocalEngine, "_in_pool", refuse)
    read = Recipe.read(recipe(tmp_path))
    plan = make_plan(read, Options(tmp_path / "out", tmp_path / "cache", 2), False, None, Screen(quiet=True))
    assert [source["name"] for source in plan["sources"]] == ["general", "medical"]


ALONE = """
import sys
from datamix.tokenize.chat_template import ChatTemplate, _transformers_templates
alone = _transformers_templates()
assert not [n for n in sys.modules if n.split(".")[0] == "transformers"], "left behind"
source = "{% for m in messages %}{{ m | tojson }}{% endfor %}{{ namespace(a=1).a }}{{ dict(b=2)['b'] }}"
messages = [{"role": "user", "content": "<b>\\u4f60"}]
ours = ChatTemplate(source, (), {}).render(messages, None, {}, False)
from transformers.utils import chat_template_utils as whole
theirs = whole._compile_jinja_template(source)
assert ours == theirs.render(messages=messages)
mine = alone._compile_jinja_template(source)
assert mine.environment.filters.keys() == theirs.environment.filters.keys()
assert mine.environment.globals.keys() == theirs.environment.globals.keys()
assert mine.environment.extensions.keys() == theirs.environment.extensions.keys()
assert alone.__file__ == whole.__file__ and alone is not whole
"""


def test_the_template_module_is_loaded_without_transformers_and_is_the_same() -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", ALONE], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
