from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

SAMPLES = Path(__file__).parent.parent / "samples"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_tokenizer", SAMPLES / "make_tokenizer.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tokenizer_is_what_its_script_trains_from_the_samples(script: ModuleType) -> None:
    stored = (SAMPLES / "tokenizer" / "tokenizer.json").read_text("utf-8")
    assert script.train().to_str(pretty=False) + "\n" == stored


def test_every_sample_goes_through_the_tokenizer_and_back(script: ModuleType) -> None:
    tokenizer = Tokenizer.from_file(str(SAMPLES / "tokenizer" / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    texts = [text for path in script.sample_files() for text in script.words(path)]
    assert len(texts) > 500
    assert [
        tokenizer.decode(e.ids, skip_special_tokens=False) for e in tokenizer.encode_batch(texts)
    ] == texts


def test_a_conversation_cut_after_any_turn_is_a_prefix_of_the_whole() -> None:
    environment = ImmutableSandboxedEnvironment()
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string((SAMPLES / "tokenizer" / "chat_template.jinja").read_text("utf-8"))
    lines = (SAMPLES / "sft" / "tools.jsonl").read_text("utf-8").strip("\n").split("\n")
    for line in lines:
        record = json.loads(line)
        turns = record["messages"]
        whole = template.render(messages=turns, tools=record["tools"])
        for end in range(1, len(turns)):
            assert whole.startswith(template.render(messages=turns[:end], tools=record["tools"]))
            if turns[end]["role"] == "assistant":
                prompt = template.render(
                    messages=turns[:end], tools=record["tools"], add_generation_prompt=True
                )
                assert whole.startswith(prompt)


def test_the_samples_stay_small_enough_to_read() -> None:
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file()) < 600_000
